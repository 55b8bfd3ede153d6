"""Keep the leases of running attempts, from a thread of its own, for as long as their engine makes progress."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from tasks.errors import StoreUnavailable
from tasks.failpoints import failpoint
from tasks.jobs import JobId
from tasks.store.lease_store import LeaseStore
from tasks.store.verdict import Verdict
from workers.clock import Clock

log = structlog.get_logger(__name__)

RENEWALS_PER_LEASE = 3


@dataclass(frozen=True, slots=True)
class RunningAttempt:
    """An attempt in a runner; `steps` counts the engine steps since it began."""

    job_id: JobId
    number: int
    steps: int


class AttemptHost(Protocol):
    def running_attempts(self) -> Iterable[RunningAttempt]: ...

    def cancel(self, job_id: JobId) -> bool: ...

    def lose(self, job_id: JobId, number: int) -> None: ...


class LeaseKeeper:
    """An attempt that made no step for `stall_s` is no longer renewed: its runner hangs, and the job is better
    rescued by another worker."""

    def __init__(self, *, leases: LeaseStore, host: AttemptHost, lease_s: float, stall_s: float, clock: Clock) -> None:
        self._leases = leases
        self._host = host
        self._interval_s = lease_s / RENEWALS_PER_LEASE
        self._stall_s = stall_s
        self._clock = clock
        self._seen: dict[tuple[JobId, int], tuple[int, float]] = {}  # attempt → (steps, when they last moved)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def renew_all(self) -> None:
        """One round. A job that is cancelled is ended in its runner; of one that is lost only the attempt that lost it,
        since a newer one may run here by now."""
        alive = self._alive()
        if alive:
            failpoint("before_renew")
        for (job_id, number), verdict in zip(alive, self._leases.renew(alive), strict=True):
            if verdict is not Verdict.OK:
                log.info("attempt_to_end", job_id=job_id, attempt=number, verdict=verdict.name)
            if verdict is Verdict.CANCEL:
                self._host.cancel(job_id)
            elif verdict is Verdict.LOST:
                self._host.lose(job_id, number)

    def _alive(self) -> list[tuple[JobId, int]]:
        now = self._clock.monotonic_s()
        seen: dict[tuple[JobId, int], tuple[int, float]] = {}
        for running in self._host.running_attempts():
            key = (running.job_id, running.number)
            steps, moved_at = self._seen.get(key, (-1, now))
            seen[key] = (steps, moved_at) if steps == running.steps else (running.steps, now)
        self._seen = seen
        return [key for key, (_, moved_at) in seen.items() if now - moved_at < self._stall_s]

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self.renew_all()
            except StoreUnavailable as error:
                log.warning("renewal_failed", error=str(error))
            except Exception:  # without this thread every longer job would be rescued, again and again
                log.exception("renewal_failed")
