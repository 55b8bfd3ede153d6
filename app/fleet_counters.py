"""What the whole fleet has counted so far, kept in the store; read when somebody scrapes the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.backend import Backend
from tasks.webhooks import OutboxState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # a registry wants it by identity
class FleetCounters(Collector):
    """Since the store exists."""

    broken_attempts: Mapping[tuple[str, str], int]  # by error code and model
    decisions: Mapping[tuple[str, str], int]  # of the controller, by action and reason
    loads: Mapping[str, tuple[int, int]]  # model → how many worked, and the milliseconds they took in all
    outbox: OutboxState

    @classmethod
    def read(cls, backend: Backend) -> FleetCounters:
        """Blocking. Raises StoreUnavailable."""
        return cls(
            broken_attempts=backend.fleet.broken_attempts(),
            decisions=backend.decisions.decision_counts(),
            loads=backend.fleet.loads(),
            outbox=backend.outbox.state(),
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
        model = ("model_name",)
        counts = [((name,), count) for name, (count, _) in self.loads.items()]
        yield _family("keepwarm_model_loads", "Loads that worked", model, counts)
        seconds = [((name,), load_ms / 1000) for name, (_, load_ms) in self.loads.items()]
        yield _family("keepwarm_model_load_seconds", "Time that these loads took in all", model, seconds)
        tries = [(tuple(name.partition(" ")[::2]), count) for name, count in self.outbox.counts.items()]
        documentation = "Tries to deliver a webhook, by what came of them; a dead one was the last"
        yield _family("keepwarm_webhook_tries", documentation, ("outcome", "reason"), tries)
        documentation = "Webhooks that wait for their first or next try"
        yield GaugeMetricFamily("keepwarm_webhooks_pending", documentation, value=self.outbox.pending)
        documentation = "How late the try is that is due for longest: no batcher runs, or none keeps up"
        yield GaugeMetricFamily("keepwarm_webhook_overdue_seconds", documentation, value=self.outbox.overdue_s)


def _family(
    name: str, documentation: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for of_labels, value in values:
        family.add_metric(of_labels, value)
    return family
