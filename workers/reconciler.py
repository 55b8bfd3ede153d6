"""Make the worker what the placement says, and say what it is: one thread, level-triggered, safe to repeat.

Each turn: read the desired placement and hand it to the warm pool; subscribe to the queues of exactly those models
that are ready (`workers.slot_gate` leaves full ones out of each pop); send the heartbeat. A turn is due on a hint, on
any change in the pool, and twice a second in any case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from tasks.errors import StoreUnavailable
from tasks.fleet import ModelOffer, RunnerReport, WorkerPlacement, WorkerReport
from tasks.jobs import WorkerId
from tasks.store.fleet_store import FleetStore
from workers.clock import Clock

log = structlog.get_logger(__name__)

TURN_S = 0.5
HEARTBEAT_S = 1.0  # at the latest; a change is reported at once


class Pool(Protocol):
    """What the reconciler needs of the warm pool."""

    @property
    def used_bytes(self) -> int: ...

    def apply(self, placement: WorkerPlacement, epoch: int) -> None: ...

    def free_slots(self) -> dict[str, int]: ...

    def report(self) -> tuple[RunnerReport, ...]: ...

    def offers(self) -> tuple[ModelOffer, ...]: ...


class Notices(Protocol):
    def send(self, runners: tuple[RunnerReport, ...]) -> None:
        """Tell who waits how far the loads have come."""
        ...


class Subscriptions(Protocol):
    """The Celery consumer's queues."""

    def set(self, models: frozenset[str]) -> None:
        """Consume from exactly these models' queues."""
        ...


class ReportFactory(Protocol):
    """Adds what does not change about a worker to what does."""

    def __call__(
        self,
        *,
        used_bytes: int,
        is_draining: bool,
        placement_epoch: int,
        offers: tuple[ModelOffer, ...],
        runners: tuple[RunnerReport, ...],
    ) -> WorkerReport: ...


class Reconciler:
    def __init__(
        self,
        *,
        worker_id: WorkerId,
        pool: Pool,
        fleet: FleetStore,
        subscriptions: Subscriptions,
        load_notices: Notices,
        make_report: ReportFactory,
        clock: Clock,
        prefetch: Callable[[tuple[str, ...]], None] = lambda models: None,
        synchronise: Callable[[], None] = lambda: None,
    ) -> None:
        self._worker_id = worker_id
        self._pool = pool
        self._fleet = fleet
        self._subscriptions = subscriptions
        self._load_notices = load_notices
        self._make_report = make_report
        self._clock = clock
        self._prefetch = prefetch
        self._synchronise = synchronise  # the clock with the store's
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._is_draining = False
        self._epoch = 0
        self._reported: WorkerReport | None = None
        self._reported_at = 0.0
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        self._due.set()  # say at once that this worker is there
        self._thread.start()

    def poke(self) -> None:
        """A turn is due now. Any thread may call this."""
        self._due.set()

    def begin_drain(self) -> None:
        """Take no more jobs and follow no more placements."""
        self._is_draining = True
        self.poke()

    def stop(self) -> None:
        """End the thread and take the worker off the record, so that nobody waits for its heartbeat to age."""
        self._stopping.set()
        self.poke()
        self._thread.join(timeout=2 * TURN_S)
        self._guarded(lambda: self._fleet.forget_worker(self._worker_id))

    def turn(self) -> None:
        """One reconciliation. Raises StoreUnavailable; jobs that run go on meanwhile."""
        if self._is_draining:
            self._subscriptions.set(frozenset())
        else:
            placement = self._fleet.placement()
            # Apply every turn, not only on a new epoch: a crashed runner is missing under the same placement.
            mine = placement.workers.get(self._worker_id, WorkerPlacement())
            self._pool.apply(mine, placement.epoch)
            self._prefetch(mine.prefetch)
            self._epoch = placement.epoch
            self._subscriptions.set(frozenset(self._pool.free_slots()))
        runners = self._pool.report()
        self._heartbeat(runners)
        self._load_notices.send(runners)

    def _heartbeat(self, runners: tuple[RunnerReport, ...]) -> None:
        report = self._make_report(
            used_bytes=self._pool.used_bytes,
            is_draining=self._is_draining,
            placement_epoch=self._epoch,
            offers=self._pool.offers(),
            runners=runners,
        )
        now = self._clock.monotonic_s()
        if report != self._reported or now - self._reported_at >= HEARTBEAT_S:
            offered = {offer.id for offer in self._reported.offers} if self._reported else set()
            self._fleet.heartbeat(report, withdrawn=offered - {offer.id for offer in report.offers})
            self._synchronise()
            self._reported, self._reported_at = report, now

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.wait(TURN_S)
            self._due.clear()
            self._guarded(self.turn)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except StoreUnavailable as error:
            log.warning("turn_failed", error=str(error))
        except Exception:
            log.exception("turn_broke")  # a bug must not end the heartbeat, or the whole worker is given up
