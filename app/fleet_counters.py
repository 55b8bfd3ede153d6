"""What the whole fleet has counted so far, kept in the store; read when somebody scrapes the metrics."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.backend import Backend
from tasks.batches import BatchFigures, BatchState
from tasks.controller.decisions import Action
from tasks.fleet import LoadCounts
from tasks.responses import ResponseFigures
from tasks.store.answer_store import CacheCounts
from tasks.webhooks import OutboxState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # a registry wants it by identity
class FleetCounters(Collector):
    """Since the store exists."""

    broken_attempts: Mapping[tuple[str, str], int]  # by error code and model
    decisions: Mapping[tuple[str, str], int]  # of the controller, by action and reason
    loads: Mapping[str, LoadCounts]  # by model
    outbox: OutboxState
    batches: BatchFigures
    cache: CacheCounts
    responses: ResponseFigures

    @classmethod
    def read(cls, backend: Backend) -> FleetCounters:
        """Blocking. Raises StoreUnavailable."""
        return cls(
            broken_attempts=backend.fleet.broken_attempts(),
            decisions=backend.decisions.decision_counts(),
            loads=backend.fleet.loads(),
            outbox=backend.outbox.state(),
            batches=backend.batches.figures(),
            cache=backend.answers.counts(),
            responses=backend.responses.figures(),
        )

    def collect(self) -> Iterator[Metric]:
        yield _family(
            "keepwarm_broken_attempts",
            "Attempts that broke, by what broke them",
            ("code", "model_name"),
            self.broken_attempts.items(),
        )
        yield _family(
            "keepwarm_controller_decisions",
            "Loads, evictions, and what else the controller decided",
            ("action", "reason"),
            self.decisions.items(),
        )
        evictions: Tally[tuple[str, ...]] = Tally()
        for (action, reason), count in self.decisions.items():
            if action == Action.EVICT:
                evictions[reason,] += count
        yield _family("keepwarm_evictions", "Runners that were sent away", ("reason",), evictions.items())
        yield self._of_models("keepwarm_model_loads", "Loads that worked", lambda each: each.loads)
        yield self._of_models(
            "keepwarm_model_load_seconds", "Time that these loads took in all", lambda each: each.load_ms / 1000
        )
        yield self._of_models(
            "keepwarm_model_swap_seconds",
            "The same from when a worker was to hold the model: others had to leave first",
            lambda each: each.swap_ms / 1000,
        )
        yield self._of_models(
            "keepwarm_cold_starts",
            "Jobs that came while no runner had their model ready",
            lambda each: each.cold_starts,
        )
        yield from self._of_batches()
        tries = [(tuple(name.partition(" ")[::2]), count) for name, count in self.outbox.counts.items()]
        documentation = "Tries to deliver a webhook, by what came of them; a dead one was the last"
        yield _family("keepwarm_webhook_tries", documentation, ("outcome", "reason"), tries)
        documentation = "Webhooks that wait for their first or next try"
        yield GaugeMetricFamily("keepwarm_webhooks_pending", documentation, value=self.outbox.pending)
        documentation = "How late the try is that is due for longest: no batcher runs, or none keeps up"
        yield GaugeMetricFamily("keepwarm_webhook_overdue_seconds", documentation, value=self.outbox.overdue_s)
        yield _family(
            "keepwarm_cache_requests",
            "Requests that the cache of answers might have answered: hit, shared (with a job that ran), miss",
            ("outcome", "model_name"),
            self.cache.requests.items(),
        )
        yield CounterMetricFamily(
            "keepwarm_cache_evictions", "Cached answers that made room for others", self.cache.evicted
        )
        yield GaugeMetricFamily("keepwarm_cache_answers", "Answers in the cache", self.cache.answers)
        yield GaugeMetricFamily("keepwarm_cache_bytes", "Bytes of these answers and their keys", self.cache.bytes)
        documentation = "Stored responses that made room for others"
        yield CounterMetricFamily("keepwarm_response_evictions", documentation, self.responses.evicted)
        yield GaugeMetricFamily("keepwarm_responses_stored", "Stored responses", self.responses.kept)
        documentation = "Bytes of these responses and their keys"
        yield GaugeMetricFamily("keepwarm_responses_bytes", documentation, self.responses.bytes)

    def _of_models(self, name: str, documentation: str, figure: Callable[[LoadCounts], float]) -> CounterMetricFamily:
        values = [((model,), figure(counts)) for model, counts in sorted(self.loads.items())]
        return _family(name, documentation, ("model_name",), values)

    def _of_batches(self) -> Iterator[Metric]:
        batches = self.batches
        states = [state for state in BatchState if not state.is_terminal]
        documentation = "Batches that have not ended"
        yield _gauges(
            "keepwarm_batches_open", documentation, {state.value: batches.open.get(state, 0) for state in states}
        )
        ended = [((state,), count) for state, count in batches.ended.items()]
        yield _family("keepwarm_batches_ended", "Batches that have ended, by how", ("state",), ended)
        yield _gauges("keepwarm_batch_lines", "Lines of open batches", batches.lines)
        documentation = "Lines that may be in flight at once, of all open batches together"
        yield GaugeMetricFamily("keepwarm_batch_window_lines", documentation, value=batches.window)
        documentation = "Age of the open batch that was created first"
        yield GaugeMetricFamily("keepwarm_batch_oldest_seconds", documentation, value=batches.oldest_age_s)


def _family(
    name: str, documentation: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for of_labels, value in values:
        family.add_metric(of_labels, value)
    return family


def _gauges(name: str, documentation: str, by_state: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=("state",))
    for state, value in by_state.items():
        family.add_metric((state,), value)
    return family
