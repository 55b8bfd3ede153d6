"""The thread that renews leases outlives what the store says."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tasks.jobs import JobId
from tasks.store.verdict import Verdict
from workers.clock import Clock
from workers.lease_keeper import LeaseKeeper, RunningAttempt


class Leases:
    """Refuses the first renewal with an error that nobody has foreseen."""

    def __init__(self) -> None:
        self.calls = 0
        self.was_renewed = threading.Event()

    def renew(self, attempts: Sequence[tuple[JobId, int]]) -> list[Verdict]:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("unforeseen")
        self.was_renewed.set()
        return [Verdict.OK for _ in attempts]


class Host:
    def running_attempts(self) -> list[RunningAttempt]:
        return [RunningAttempt(JobId("job_1"), number=1, steps=1)]

    def cancel(self, job_id: JobId) -> bool:
        raise AssertionError("nothing was cancelled")

    def lose(self, job_id: JobId, number: int) -> None:
        raise AssertionError("nothing was lost")


def test_leases_are_renewed_after_an_error_that_nobody_has_foreseen() -> None:
    leases = Leases()
    keeper = LeaseKeeper(leases=leases, host=Host(), lease_s=0.03, stall_s=60, clock=Clock())  # type: ignore[arg-type]
    keeper.start()
    assert leases.was_renewed.wait(10)
    keeper.stop()
