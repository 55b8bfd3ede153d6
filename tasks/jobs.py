"""The job: its states, who may move it where, and the record that clients see. Pure: no store, no clock."""

from __future__ import annotations

import secrets
from enum import IntEnum, StrEnum
from typing import NewType

import msgspec

from tasks.attachments import Webhook

JobId = NewType("JobId", str)
WorkerId = NewType("WorkerId", str)


class JobState(StrEnum):
    """Where a job stands. Terminal states are written once and never change."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        return not NEXT[self]


# Who moves it: claim (queued → running), finish (running → terminal), rescue and drain (running → queued),
# cancel (queued → cancelled; a running job gets a flag, and its worker finishes it, or whoever would have returned it
# to the queue), the deadline sweep (queued → expired), and the controller (queued → failed when the model can't be
# loaded anywhere).
NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.QUEUED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}


class Priority(IntEnum):
    """Level on the Redis transport; 0 runs first. The values are kombu's default priority_steps."""

    INTERACTIVE = 0
    DEFAULT = 3
    BATCH = 6

    @classmethod
    def named(cls, name: str) -> Priority:
        return cls[name.upper()]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one job over all its attempts (forced prefixes are not counted twice)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed: `code` as in `tasks.errors`, a sentence, and the offending parameter if there is one."""

    code: str
    message: str
    param: str | None = None


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a succeeded (or cut short) job produced."""

    text: str
    finish_reason: str | None  # "stop", "length"; None when the job did not get that far
    usage: Usage | None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the record in the store. Times are integer milliseconds of the store's clock."""

    id: JobId
    state: JobState
    model: str
    priority: Priority
    attempt: int  # fence: a higher attempt always wins
    last_seq: int  # number of the newest event in the token stream, 0 before the first
    created_ms: int
    deadline_ms: int | None = None
    started_ms: int | None = None  # start of the newest attempt
    finished_ms: int | None = None
    worker: WorkerId | None = None  # owner of the newest attempt
    workers: tuple[WorkerId, ...] = ()  # owners of all attempts, oldest first
    failures: int = 0  # attempts that broke; a parked one did not
    last_error: JobError | None = None  # why the newest of those broke, also while the job goes on
    cancel_requested: bool = False
    result: JobResult | None = None
    error: JobError | None = None  # why the job ended without a result
    requeued_from: JobId | None = None  # the job that this one repeats
    requeued_as: JobId | None = None  # the job that repeats this one
    metadata: dict[str, str] | None = None
    webhook: Webhook | None = None
    webhook_delivered: bool | None = None  # None: not yet; False: given up
    webhook_attempts: int = 0
    webhook_status: str | None = None  # of the newest of these: `delivered`, or why not
    batch_id: str | None = None  # whose line it answers


def new_job_id() -> JobId:
    """`job_` and 120 random bits, so that an id can't be guessed."""
    return JobId("job_" + secrets.token_hex(15))
