"""Prometheus metrics of one front process, named after vLLM's; what belongs to the fleet is read at scrape time.

Every front reports the same fleet gauges: aggregate those with max, and this process's own counters with sum.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.backend import Batch
from app.fleet_counters import FleetCounters
from app.fleet_view import FleetSnapshot
from tasks.jobs import Job
from tasks.stream_events import End, Started, Tokens

_FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 40, 80, 160)
_BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5)
_REQUEST_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class JobMetrics(NamedTuple):
    """The children of a model and a priority, looked up once per request and not once per token."""

    first_token: Histogram
    between_tokens: Histogram
    queue_time: Histogram
    class_wait: Histogram
    prompt_tokens: Counter
    generation_tokens: Counter


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ("model_name",)
        self._first_token = Histogram(
            "keepwarm_time_to_first_token_seconds",
            "From the arrival of a request to its first token, of answers that this process passed on",
            model,
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self._between_tokens = Histogram(
            "keepwarm_inter_token_latency_seconds",
            "Time between two chunks of a stream, divided by the tokens of the later one",
            model,
            buckets=_BETWEEN_TOKENS_S,
            registry=registry,
        )
        self._queue_time = Histogram(
            "keepwarm_request_queue_time_seconds",
            "From the arrival of a request to the start of its first attempt",
            model,
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self._class_wait = Histogram(
            "keepwarm_priority_queue_time_seconds",
            "The same by the job's priority class",
            ("priority",),
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "keepwarm_prompt_tokens", "Prompt tokens of answers that this process passed on", model, registry=registry
        )
        self._generation_tokens = Counter(
            "keepwarm_generation_tokens", "Generated tokens that this process passed on", model, registry=registry
        )
        self._requests = Counter(
            "keepwarm_http_requests", "HTTP requests", ("method", "route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "keepwarm_http_request_duration_seconds",
            "From the request line to the last byte of the answer",
            ("route",),
            buckets=_REQUEST_S,
            registry=registry,
        )
        self._refused_connections = Counter(
            "keepwarm_connections_refused",
            "Connections turned away or cut off below HTTP",
            ("code",),
            registry=registry,
        )
        self.open_streams = Gauge("keepwarm_open_streams", "Token streams open in this process", registry=registry)

    def of_job(self, job: Job) -> JobMetrics:
        model_id = job.model
        return JobMetrics(
            self._first_token.labels(model_id),
            self._between_tokens.labels(model_id),
            self._queue_time.labels(model_id),
            self._class_wait.labels(job.priority.name.lower()),
            self._prompt_tokens.labels(model_id),
            self._generation_tokens.labels(model_id),
        )

    def request_done(self, method: str, route: str, status: int, took_s: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(took_s)

    def connection_refused(self, code: str) -> None:
        self._refused_connections.labels(code).inc()

    def exposition(self, snapshot: FleetSnapshot | None, counters: FleetCounters | None) -> bytes:
        """The scrape's text; None: the store can't be reached."""
        fleet = CollectorRegistry()
        fleet.register(_FleetGauges(snapshot))
        if counters is not None:
            fleet.register(counters)
        return generate_latest(self.registry) + generate_latest(fleet)


class AnswerMeter:
    """What the client of one answer feels. Times are monotonic seconds."""

    def __init__(self, metrics: JobMetrics, arrived: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._clock = clock
        self._last_tokens_at: float | None = None
        self._has_started = False

    def saw(self, batch: Batch) -> None:
        num_tokens = 0
        for _, event in batch:
            if isinstance(event, Tokens):
                num_tokens += len(event.ids)
            elif isinstance(event, Started) and not self._has_started:
                self._has_started = True
                waited_s = self._clock() - self._arrived
                self._metrics.queue_time.observe(waited_s)
                self._metrics.class_wait.observe(waited_s)
            elif isinstance(event, End) and event.usage is not None:
                self._metrics.prompt_tokens.inc(event.usage.prompt_tokens)
                self._metrics.generation_tokens.inc(event.usage.completion_tokens)
        if not num_tokens:
            return
        now = self._clock()
        if self._last_tokens_at is None:
            self._metrics.first_token.observe(now - self._arrived)
        else:
            self._metrics.between_tokens.observe((now - self._last_tokens_at) / num_tokens)
        self._last_tokens_at = now


class _FleetGauges(Collector):
    def __init__(self, snapshot: FleetSnapshot | None) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield GaugeMetricFamily("keepwarm_store_up", "Whether the store answers", value=float(snapshot is not None))
        if snapshot is None:
            return
        workers = snapshot.fleet.workers
        yield GaugeMetricFamily("keepwarm_workers", "Live workers", value=len(workers))
        running = {offer.id: 0 for offer in snapshot.catalog}
        runners: Tally[tuple[str, str, str]] = Tally()
        for worker in workers:
            for runner in worker.runners:
                own = max(0, runner.in_flight - sum(runner.adapters.values()))  # counted one after the other
                for model, in_flight in ((runner.model, own), *runner.adapters.items()):
                    running[model] = running.get(model, 0) + in_flight
                runners[worker.id, runner.model, runner.state.value] += 1
        waiting = dict.fromkeys(running, 0) | {queue.model: queue.depth for queue in snapshot.queues}
        oldest = dict.fromkeys(running, 0.0) | {queue.model: queue.oldest_age_ms / 1000 for queue in snapshot.queues}
        yield _family("keepwarm_num_requests_running", "Jobs in a runner's batch", ("model_name",), running)
        yield _family("keepwarm_num_requests_waiting", "Jobs that wait for a slot", ("model_name",), waiting)
        yield _family("keepwarm_oldest_waiting_seconds", "Age of the job that waits longest", ("model_name",), oldest)
        yield _family(
            "keepwarm_pool_used_bytes",
            "Bytes that runners reserve or use",
            ("worker",),
            {worker.id: worker.used_bytes for worker in workers},
        )
        yield _family(
            "keepwarm_pool_budget_bytes",
            "Bytes that runners may use",
            ("worker",),
            {worker.id: worker.budget_bytes for worker in workers},
        )
        yield _family(
            "keepwarm_estimate_error_ratio",
            "Memory expected before the first load, divided by what was measured, minus 1",
            ("worker", "model_name"),
            {
                (worker.id, offer.id): offer.estimate_error
                for worker in workers
                for offer in worker.offers
                if offer.estimate_error is not None
            },
        )
        yield _family("keepwarm_runners", "Runner processes", ("worker", "model_name", "state"), runners)


def _family(name: str, documentation: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> GaugeMetricFamily:
    """Keys of `values` are a label's value, or a tuple of several."""
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for key, value in values.items():
        family.add_metric(key if isinstance(key, tuple) else (key,), value)
    return family
