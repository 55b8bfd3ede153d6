"""A runner in the warm pool, from the decision to load it until its process is gone, and how heartbeats tell of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tasks.fleet import RunnerReport, RunnerState
from workers.model_files import ModelFile
from workers.runner import Runner


@dataclass(slots=True, eq=False)
class Resident:
    """Mutable; the pool's lock guards it. `runner` is None until the process is spawned; `disk`: as in `Wanted`."""

    model: ModelFile
    since_ms: int
    disk: int | None = None
    runner: Runner | None = None
    is_leaving: bool = False
    has_worked: bool = False
    is_remeasured: bool = False  # after its first work, when it has touched its buffers
    outdated_since_s: float | None = None  # monotonic; its file or its settings have changed since it was loaded
    broken_adapters: frozenset[str] = frozenset()  # that its model should have, and its process could not load

    @property
    def state(self) -> RunnerState:
        state = self.runner.state if self.runner else RunnerState.STARTING
        return RunnerState.DRAINING if self.is_leaving and state is RunnerState.READY else state

    @property
    def is_busy(self) -> bool:
        """Whether it comes, goes or works."""
        return self.runner is None or self.state is not RunnerState.READY or self.runner.in_flight > 0

    @property
    def is_loading(self) -> bool:
        return self.state is RunnerState.STARTING

    @property
    def busy_disk(self) -> int | None:
        """That its load reads from right now."""
        has_read = self.runner is not None and self.runner.has_read
        return self.disk if self.is_loading and not has_read else None

    @property
    def adapters(self) -> tuple[str, ...]:
        """Models that its process serves, or will serve, beside its own."""
        return tuple(each.id for each in self.model.adapters if each.id not in self.broken_adapters)

    def take_remeasuring(self) -> bool:
        """True once in its life, when the first work is over."""
        is_due = (
            self.has_worked
            and not self.is_remeasured
            and not self.is_leaving
            and self.runner is not None
            and self.runner.in_flight == 0
        )
        self.is_remeasured |= is_due
        return is_due

    def report(self, held_bytes: int) -> RunnerReport:
        if self.runner is None:
            return RunnerReport(
                pid=0,
                model=self.model.id,
                state=RunnerState.STARTING,
                bytes=held_bytes,
                slots=self.model.slots,
                in_flight=0,
                since_ms=self.since_ms,
                idle_since_ms=self.since_ms,
                progress=0.0,
                reduced=self.model.reduced,
                adapters=dict.fromkeys(self.adapters, 0),
            )
        report = self.runner.report(held_bytes, state=self.state)
        adapters = {each: self.runner.in_flight_of(each) for each in self.adapters}
        return msgspec.structs.replace(report, reduced=self.model.reduced, adapters=adapters)
