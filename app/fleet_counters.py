"""What the whole fleet has counted so far, kept in the store; read when somebody scrapes the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from app.backend import Backend


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # a registry wants it by identity
class FleetCounters(Collector):
    """Since the store exists."""

    broken_attempts: Mapping[tuple[str, str], int]  # by error code and model
    decisions: Mapping[tuple[str, str], int]  # of the controller, by action and reason
    loads: Mapping[str, tuple[int, int]]  # model → how many worked, and the milliseconds they took in all

    @classmethod
    def read(cls, backend: Backend) -> FleetCounters:
        """Blocking. Raises StoreUnavailable."""
        return cls(
            broken_attempts=backend.fleet.broken_attempts(),
            decisions=backend.decisions.decision_counts(),
            loads=backend.fleet.loads(),
        )

    def collect(self) -> Iterator[CounterMetricFamily]:
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


def _family(
    name: str, documentation: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for of_labels, value in values:
        family.add_metric(of_labels, value)
    return family
