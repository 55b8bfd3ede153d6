"""Admission as the front uses it: write the record, send the wake-up, nudge the controller for a cold model."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from tasks.admission_control import AdmissionControl
from tasks.answer_cache import CacheOutcome, as_cached
from tasks.attachments import Attachments
from tasks.errors import KeepwarmError, QueueFull, StoreFull, StoreUnavailable
from tasks.failpoints import failpoint
from tasks.fleet import Fleet, ModelOffer
from tasks.forecast import QueueRoom
from tasks.job_request import JobRequest
from tasks.jobs import Job, JobId, JobState, Priority, new_job_id
from tasks.order import Order
from tasks.store.admission_store import AdmissionStore
from tasks.store.fleet_store import FleetStore
from tasks.store.job_store import JobStore
from tasks.stream_events import NumberedEvent
from tasks.wakeups import Wakeups

FLEET_CACHE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    job: Job
    is_new: bool  # False: an Idempotency-Key attached to a job admitted before
    position: int
    is_heard: bool = False  # new, and somebody listened to its channel already: nothing of it needs to be replayed
    cache: CacheOutcome | None = None  # None: the cache was not asked
    answer: tuple[NumberedEvent, ...] = ()  # from the cache; then there is no record of `job`
    follows: JobId | None = None  # the job that computes the same; then there is no record of `job`
    room: QueueRoom | None = None  # of a new job: in the line that it joined


class Dispatcher:
    """Synchronous (Celery's producer is); async callers use a thread."""

    def __init__(
        self,
        admissions: AdmissionStore,
        jobs: JobStore,
        fleet: FleetStore,
        wakeups: Wakeups,
        control: AdmissionControl,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admissions = admissions
        self._jobs = jobs
        self._fleet = fleet
        self._wakeups = wakeups
        self._control = control
        self._clock = clock
        self._fleet_seen: Fleet | None = None
        self._fleet_seen_at = 0.0

    def submit(self, request: JobRequest, order: Order) -> Submission:
        """Once this returns the job is acknowledged: it survives any crash of any process but the store's disk.

        A job that outlives its clients has a record also when it is a cached answer. Raises QueueFull, StoreFull,
        IdempotencyMismatch, PromptQuarantined, ModelQuarantined, DeadlineCannotBeMet, StoreUnavailable."""
        offer, priority = order.offer, order.priority
        job_id = order.job_id or new_job_id()
        refusal = self._refusal(order)
        wakeup = self._wakeups.envelope(job_id, offer.id, priority)
        try:
            admission = self._admissions.admit(
                job_id,
                request,
                priority=priority,
                deadline_ms=order.deadline_ms,
                idempotency_key=order.idempotency_key,
                fingerprint=order.fingerprint,
                repeats=order.repeats,
                refusal=refusal,
                wakeup=wakeup,
                attached=order.attached,
                wish=order.wish,
            )
        except QueueFull as full:
            raise self._control.with_retry_after(full, self._current_fleet()) from None
        if admission.shared_with is not None:
            job = _unwritten(job_id, request, priority, admission.created_ms, JobState.RUNNING)
            return Submission(
                job=job, is_new=False, position=0, cache=CacheOutcome.SHARED, follows=admission.shared_with
            )
        if admission.answer:
            answer = as_cached(admission.answer)
            if order.wish is not None and order.wish.ends_with_clients:
                job = _unwritten(job_id, request, priority, admission.created_ms, JobState.SUCCEEDED)
                return Submission(job=job, is_new=False, position=0, cache=CacheOutcome.HIT, answer=answer)
            if isinstance(refusal, StoreFull):  # a record would take room; no deadline is missed by what is there
                raise refusal
            if self._admissions.write_answered(
                job_id,
                request,
                answer,
                priority=priority,
                idempotency_key=order.idempotency_key,
                fingerprint=order.fingerprint,
                attached=order.attached,
            ):
                return Submission(job=self._jobs.get(job_id), is_new=False, position=0, cache=CacheOutcome.HIT)
            return self.submit(request, replace(order, job_id=None, wish=None))
        if not admission.is_new:
            job = self._jobs.get(admission.job_id)
            return Submission(job=job, is_new=False, position=self._jobs.position(job) or 0)
        failpoint("after_admit")
        if wakeup is None:
            self._wakeups.wake(job_id, offer.id, priority)
        if not self._current_fleet().has_ready_runner(offer.id):
            self._wakeups.nudge_controller()
            with suppress(StoreUnavailable):  # a figure less
                self._fleet.count_cold_start(offer.id)
        job = Job(
            id=job_id,
            state=JobState.QUEUED,
            model=request.model,
            priority=priority,
            attempt=0,
            last_seq=0,
            created_ms=admission.created_ms,
            deadline_ms=order.deadline_ms,
            requeued_from=order.repeats,
            metadata=order.attached.metadata,
            webhook=order.attached.webhook,
            batch_id=order.attached.batch_id,
        )
        return Submission(
            job=job,
            is_new=True,
            position=admission.position,
            is_heard=admission.is_heard,
            cache=None if order.wish is None else CacheOutcome.MISS,
            room=self._control.room(offer, self._current_fleet(), depth=admission.depth, total=admission.total),
        )

    def requeue(self, job: Job, *, offer: ModelOffer) -> Submission:
        """Admit a new job with the request of one that ended badly; a terminal record is never run again.

        A deadline that is still ahead is kept. A repeated call finds the job that the first one made.
        Raises JobNotRepeatable, JobNotFound, and what `submit` does."""
        deadline_ms = job.deadline_ms
        if deadline_ms is not None and deadline_ms <= self._current_fleet().now_ms:
            deadline_ms = None
        order = Order(
            offer=offer,
            priority=job.priority,
            deadline_ms=deadline_ms,
            repeats=job.id,
            attached=Attachments(metadata=job.metadata, webhook=job.webhook, batch_id=job.batch_id),
        )
        return self.submit(self._jobs.request_of(job.id), order)

    def predicted_wait_s(self, model: str, priority: Priority, ahead: int) -> float | None:
        """Until a job with `ahead` jobs of its model before it starts; None when nothing measured says so."""
        fleet = self._current_fleet()
        offer = fleet.offers().get(model)
        return None if offer is None else self._control.predicted_wait_s(offer, fleet, priority, ahead=ahead)

    def _refusal(self, order: Order) -> KeepwarmError | None:
        refusal = self._control.store_full()
        if refusal is not None or order.deadline_ms is None:
            return refusal
        fleet = self._current_fleet()
        now_ms = fleet.now_ms + int((self._clock() - self._fleet_seen_at) * 1000)
        ahead = self._jobs.ahead(order.offer.id, order.priority)
        return self._control.too_late(
            order.offer, fleet, order.priority, ahead=ahead, deadline_ms=order.deadline_ms, now_ms=now_ms
        )

    def _current_fleet(self) -> Fleet:
        now = self._clock()
        if self._fleet_seen is None or now - self._fleet_seen_at > FLEET_CACHE_S:
            self._fleet_seen, self._fleet_seen_at = self._fleet.fleet(), now
        return self._fleet_seen


def _unwritten(job_id: JobId, request: JobRequest, priority: Priority, now_ms: int, state: JobState) -> Job:
    """A job in name only: its answer comes from elsewhere."""
    return Job(
        id=job_id,
        state=state,
        model=request.model,
        priority=priority,
        attempt=0,
        last_seq=0,
        created_ms=now_ms,
    )
