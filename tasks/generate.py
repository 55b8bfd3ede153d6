"""The Celery task behind every job. A door only: `run_attempt` holds the steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, assert_never

import structlog
from celery import shared_task

from tasks.celery_app import GENERATE
from tasks.celery_app import app as celery_app
from tasks.errors import CannotResume, StoreUnavailable
from tasks.failpoints import failpoint
from tasks.jobs import JobError, JobId, JobResult, JobState, Priority
from tasks.ports import (
    Attempt,
    Cancelled,
    Failed,
    Finished,
    Lost,
    ModelHost,
    Outcome,
    Parked,
    Slot,
    model_host,
)
from tasks.routing import model_of_queue
from tasks.settings import StoreSettings, load_settings
from tasks.store.connection import connect
from tasks.store.job_store import JobStore
from tasks.store.lease_store import JobIsLate, JobIsQuarantined, JobIsUnreadable, LeaseStore
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.stream_events import Reset
from tasks.wakeups import Wakeups

INSISTENCE_S = (0.1, 0.3, 0.6, 1.0, 1.0)  # pauses; in all well below a lease

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStores:
    """What an attempt writes to."""

    jobs: JobStore
    leases: LeaseStore
    writer: TokenWriter
    wakeups: Wakeups


@shared_task(bind=True, name=GENERATE)  # type: ignore[untyped-decorator]
def generate(self: Any, job_id: str) -> None:
    delivery = self.request.delivery_info
    model = model_of_queue(delivery["routing_key"])
    if model is None:
        _log.error("wakeup_in_wrong_queue", job_id=job_id, queue=delivery["routing_key"])
        return
    run_attempt(JobId(job_id), model, Priority(delivery["priority"] or 0), host=model_host(), stores=_stores())


def run_attempt(job_id: JobId, model: str, priority: Priority, *, host: ModelHost, stores: AttemptStores) -> None:
    """Take a slot, claim the job, generate, and write down how it ended.

    A wake-up that finds no slot goes back to the queue; one that finds its job taken is dropped."""
    failpoint("after_pop")
    slot = host.take_slot(model, priority)
    if slot is None:
        stores.wakeups.wake(job_id, model, priority)
        return
    failpoint("after_slot")
    attempt = _claim(job_id, model, slot, host, stores)
    if attempt is None:
        return
    failpoint("after_claim")
    outcome = slot.run(attempt)
    failpoint("before_finish")
    insist(lambda: conclude_attempt(attempt, outcome, stores))
    failpoint("after_finish")


def _claim(job_id: JobId, model: str, slot: Slot, host: ModelHost, stores: AttemptStores) -> Attempt | None:
    attempt = None
    try:
        attempt = stores.leases.claim(job_id, model, host.worker_id, slot.fingerprint, runner_model=slot.runner_model)
    except JobIsLate:
        stores.jobs.end_waiting(job_id, JobState.EXPIRED, deadline_error())
    except JobIsQuarantined as quarantined:
        stores.jobs.end_waiting(job_id, JobState.FAILED, quarantined.error)
    except JobIsUnreadable as unreadable:
        _log.error("record_unreadable", job_id=job_id, error=str(unreadable))
        stores.leases.finish(job_id, unreadable.number, JobState.FAILED, error=unreadable.error)
    finally:
        if attempt is None:
            slot.give_back()
    return attempt


def insist(write: Callable[[], None], pause: Callable[[float], None] = time.sleep) -> None:
    """Bridge a restart of the store: the outcome is known nowhere else, and every write is safe to repeat.

    Raises StoreUnavailable when it lasts; the lease ends then, and a new attempt finds the published tokens."""
    for pause_s in INSISTENCE_S:
        try:
            return write()
        except StoreUnavailable as error:
            _log.warning("outcome_not_written", error=str(error), retry_in_s=pause_s)
            pause(pause_s)
    return write()


def conclude_attempt(attempt: Attempt, outcome: Outcome, stores: AttemptStores) -> None:
    """Write the outcome, fenced: a terminal state, or back to the queue."""
    job_id, number = attempt.job_id, attempt.number
    _log.info("attempt_finished", job_id=job_id, attempt=number, outcome=type(outcome).__name__)
    match outcome:
        case Finished(text=text, finish_reason=reason, usage=usage, tail=tail):
            result = JobResult(text=text, finish_reason=reason, usage=usage)
            stores.leases.finish(job_id, number, JobState.SUCCEEDED, result=result, tail=tail)
        case Cancelled(text=text, usage=usage, is_expired=is_expired):
            result = JobResult(text=text, finish_reason=None, usage=usage)
            state = JobState.EXPIRED if is_expired else JobState.CANCELLED
            error = deadline_error() if is_expired else None
            stores.leases.finish(job_id, number, state, result=result, error=error)
        case Failed(error=JobError(code=CannotResume.code, message=reason)):
            _start_over(attempt, reason, stores)
        case Failed(error=error, is_retryable=False):
            stores.leases.finish(job_id, number, JobState.FAILED, error=error)
        case Failed(error=error, company=company):
            _release(attempt, error, stores, company)
        case Parked():
            _release(attempt, None, stores)
        case Lost():
            pass
        case _:
            assert_never(outcome)


def _start_over(attempt: Attempt, reason: str, stores: AttemptStores) -> None:
    """Void the published text, say so in the stream, and let the next attempt begin without a prefix."""
    reset = Reset(attempt=attempt.number + 1, reason=reason)
    stores.writer.append([Chunk(attempt.job_id, attempt.number, attempt.last_seq + 1, reset)])
    _release(attempt, None, stores)


def _release(attempt: Attempt, failure: JobError | None, stores: AttemptStores, company: int = 0) -> None:
    failpoint("before_release")
    released = stores.leases.release(attempt.job_id, attempt.number, failure=failure, company=company)
    failpoint("after_release")
    if released is not None:
        stores.wakeups.wake(attempt.job_id, released.model, released.priority)


def deadline_error() -> JobError:
    return JobError(code="deadline_exceeded", message="The job's deadline passed before it ended.")


@cache
def _stores() -> AttemptStores:
    settings = load_settings(StoreSettings)
    client = connect(settings)
    return AttemptStores(
        jobs=JobStore(client, settings),
        leases=LeaseStore(client, settings),
        writer=TokenWriter(client),
        wakeups=Wakeups(celery_app),
    )
