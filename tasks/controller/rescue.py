"""Pick up what fell: expired leases, lost wake-ups, passed deadlines, jobs of models that can't be served."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from tasks.failpoints import failpoint
from tasks.fleet import Fleet, RunnerState
from tasks.generate import deadline_error
from tasks.jobs import JobError, JobState
from tasks.quarantine import model_suspect, suspicious_models
from tasks.settings import StoreSettings
from tasks.store.admission_store import INDEX_SLACK_MS
from tasks.store.backlog_store import BacklogStore
from tasks.store.batch_store import BatchStore
from tasks.store.fleet_store import FleetStore
from tasks.store.job_store import JobStore
from tasks.store.lease_store import LeaseStore
from tasks.store.quarantine_store import QuarantineStore
from tasks.wakeups import Wakeups

BATCH = 200  # records per sweep and tick; the next tick is half a second away
OFFER_RETENTION_MS = 600_000  # a worker that restarts for so long still gets the jobs of its models
FILE_SWEEP_S = 600
TIDY_EVERY_MS = 10_000

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Rescue:
    jobs: JobStore
    leases: LeaseStore
    fleet: FleetStore
    backlog_store: BacklogStore
    quarantine: QuarantineStore
    batches: BatchStore
    wakeups: Wakeups
    settings: StoreSettings
    _tidied_ms: int = 0

    def sweep(self) -> None:
        """All sweeps that would find something. Every one is safe to repeat and to run twice at once."""
        due = self.backlog_store.due()
        if due.leases:
            self._return_expired_leases()
        if due.lines:
            self._resend_lost_wakeups()
        if due.deadlines:
            self._expire_late_jobs()
        if due.workers:
            self._forget_silent_workers()
        if due.batches:
            self._wake_batches()
        if due.now_ms - self._tidied_ms >= TIDY_EVERY_MS:
            self._tidied_ms = due.now_ms
            self._tidy()

    def quarantine_models(self, fleet: Fleet) -> dict[str, str]:
        """Quarantine models that cost too many workers. All that are in quarantine, with the reason."""
        if self.quarantine.is_idle():
            return {}
        losses = self.quarantine.losses()
        succeeded_ms = self.quarantine.succeeded_ms({loss.model for loss in losses})
        for model, workers in suspicious_models(losses, fleet, succeeded_ms).items():
            if self.quarantine.impose(model_suspect(model, workers)) is not None:
                _log.error("model_quarantined", model=model, workers=workers)
        for entry in self.quarantine.release_expired():
            _log.info("quarantine_over", suspect=entry.id)
        return {model: entry.suspect.reason for model, entry in self.quarantine.models().items()}

    def refuse(self, model: str, error: JobError) -> None:
        """End the waiting jobs of a model that can't be served."""
        for job_id in self.backlog_store.waiting(model, BATCH):
            self.jobs.end_waiting(job_id, JobState.FAILED, error)
            _log.warning("job_refused", job_id=job_id, model=model)

    def hand_over(
        self, model: str, target: str, *, refusal: JobError | None = None, at_most: int | None = None
    ) -> None:
        """Send the waiting jobs of a model to its fallback, the most urgent first. Those that were handed over before,
        or have published tokens, stay: they end with the `refusal` when nobody will ever serve them."""
        stayed, left = set(), BATCH if at_most is None else at_most
        for job_id in self.backlog_store.waiting(model, BATCH):
            if not left:
                break
            priority = self.jobs.hand_over(job_id, model, target)
            if priority is None:
                stayed.add(job_id)
            else:
                left -= 1
                _log.warning("job_handed_over", job_id=job_id, model=model, fallback=target)
                self.wakeups.wake(job_id, target, priority)
        if refusal is not None and stayed:
            for job_id in stayed.intersection(self.backlog_store.waiting(model, BATCH)):
                self.jobs.end_waiting(job_id, JobState.FAILED, refusal)
                _log.warning("job_refused", job_id=job_id, model=model)

    def _return_expired_leases(self) -> None:
        for job_id, attempt, worker in self.leases.expired(BATCH):
            released = self.leases.rescue(job_id, attempt, worker)
            _log.warning("lease_expired", job_id=job_id, attempt=attempt, worker=worker, requeued=released is not None)
            if released is not None:
                failpoint("after_rescue")
                self.wakeups.wake(job_id, released.model, released.priority)

    def _resend_lost_wakeups(self) -> None:
        for job_id, model, priority in self.backlog_store.lost():
            _log.warning("wakeup_resent", job_id=job_id, model=model)
            self.backlog_store.mark_woken(job_id)
            failpoint("after_resend_mark")
            self.wakeups.wake(job_id, model, priority)

    def _expire_late_jobs(self) -> None:
        for job_id in self.backlog_store.late(BATCH):
            self.jobs.end_waiting(job_id, JobState.EXPIRED, deadline_error())

    def _forget_silent_workers(self) -> None:
        for worker_id in self.fleet.silent_workers():
            _log.warning("worker_gone", worker=worker_id)
            for runner in self.fleet.last_runners(worker_id):
                if runner.state is RunnerState.STARTING:  # what was running is noticed by its leases
                    self.quarantine.add_loss(runner.model, worker_id, runner.since_ms)
            self.fleet.forget_worker(worker_id)

    def _wake_batches(self) -> None:
        for batch_id in self.batches.lost():
            _log.info("batch_woken", batch_id=batch_id)
            self.wakeups.feed(batch_id)

    def _tidy(self) -> None:
        """What nobody waits for: retention is minutes and more."""
        if self.batches.is_sweep_due(FILE_SWEEP_S):
            self.wakeups.sweep_files(FILE_SWEEP_S)
        retention_ms, dead_retention_ms = self.settings.retention_s * 1000, self.settings.dead_retention_s * 1000
        self.backlog_store.trim_index(max(retention_ms, dead_retention_ms) + INDEX_SLACK_MS)
        if num_beyond := self.backlog_store.trim_dead(dead_retention_ms, retention_ms):
            _log.warning("dead_letters_dropped", count=num_beyond)
        if models := self.fleet.forget_old_offers(OFFER_RETENTION_MS):
            _log.info("models_forgotten", models=models)
