"""What a warm pool knows: its runners, what it shall hold, what failed, and what waits."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tasks.fleet import WorkerPlacement
from workers.eviction import UseRate
from workers.load_failures import LoadFailures
from workers.resident import Resident
from workers.runner import Runner


@dataclass(slots=True, eq=False)
class PoolState:
    """`lock` guards every field, and is never held while something takes time. Methods take it themselves."""

    failures: LoadFailures
    lock: threading.Lock = field(default_factory=threading.Lock)
    emptier: threading.Condition = field(init=False)  # of the lock: a runner is gone
    placement: WorkerPlacement = field(default_factory=WorkerPlacement)
    epoch: int = 0  # of the newest placement
    is_draining: bool = False
    residents: dict[str, Resident] = field(default_factory=dict)
    unreleased: dict[str, Runner] = field(default_factory=dict)  # gone, or to be gone; the device holds its memory
    wanted_since_s: dict[str, float] = field(default_factory=dict)  # held by the placement and not ready
    awaited_bytes: int = 0  # what loads that wait, for others to leave or for a disk, need of the free ones
    rates: dict[str, UseRate] = field(default_factory=dict)  # of requests; kept beyond a single residency
    broken_adapters: dict[str, tuple[str, str]] = field(default_factory=dict)  # → identity, and why it was left out

    def __post_init__(self) -> None:
        self.emptier = threading.Condition(self.lock)

    def note_request(self, model: str, now_ms: int) -> None:
        with self.lock:
            self.rates[model] = self.rates.get(model, UseRate()).with_request(now_ms)
            if resident := self.residents.get(model):
                resident.has_worked = True

    def runners(self) -> list[Runner]:
        with self.lock:
            return [each.runner for each in self.residents.values() if each.runner]

    def serving(self) -> dict[str, Runner]:
        """Runners that may get new work, by all models that they serve."""
        with self.lock:
            return {
                served: each.runner
                for model, each in self.residents.items()
                if each.runner and not each.is_leaving
                for served in (model, *each.adapters)
            }

    def wait_empty(self, timeout_s: float) -> bool:
        with self.emptier:
            return self.emptier.wait_for(lambda: not self.residents, timeout_s)
