"""The native job API: what clients post and the job object that they get."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PlainValidator

from app.schemas.attachments import AttachmentFields
from app.schemas.openai import ChatFields, Messages, PriorityName, Text
from app.schemas.own_fields import OwnFields
from tasks.jobs import Job, JobError, JobResult, JobState, Priority

MAX_DEADLINE_S = 10 * 365 * 24 * 3600


def _as_deadline(value: object) -> float | datetime:
    match value:
        case bool():
            pass
        case int() | float() if 0 < value <= MAX_DEADLINE_S:
            return float(value)
        case str():
            try:
                time = datetime.fromisoformat(value)
            except ValueError:
                time = None
            if time is not None and time.tzinfo is not None:
                return time
    raise ValueError("must be a positive number of seconds from now, or a time like 2030-01-31T12:00:00Z")


_DeadlineForms = Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] | datetime
Deadline = Annotated[float | datetime, PlainValidator(_as_deadline, json_schema_input_type=_DeadlineForms)]


class JobBody(ChatFields, AttachmentFields, OwnFields):
    """POST /v1/jobs: exactly one of messages and prompt."""

    messages: Messages | None = None
    prompt: Text | None = None
    priority: PriorityName = "default"
    deadline: Deadline | None = Field(default=None, description="Seconds from now, or an RFC 3339 time.")


class UsageObject(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


class ResultObject(BaseModel):
    text: str
    finish_reason: str | None
    usage: UsageObject | None


class ErrorObject(BaseModel):
    code: str
    message: str
    param: str | None


class WebhookObject(BaseModel):
    url: str  # without its query, which may hold a token
    delivered: bool | None  # null: not yet; false: given up
    state: Literal["pending", "delivered", "dead"]
    attempts: int
    last_status: str | None  # of the newest attempt: delivered, or why not


class JobObject(BaseModel):
    """A job as clients see it. Times are RFC 3339 in UTC."""

    id: str
    object: Literal["job"] = "job"
    state: JobState
    model: str
    attempt: int  # number of the newest attempt; 0 before the first
    failures: int  # attempts that broke
    priority: PriorityName
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline: datetime | None
    worker: str | None
    workers: list[str]  # of all attempts, oldest first
    position: int | None  # 0 = next in line; null when it does not wait
    predicted_wait_s: float | None  # until it starts, by what was measured; null when unknown or not waiting
    last_seq: int
    result: ResultObject | None
    error: ErrorObject | None  # why it ended without a result
    last_error: ErrorObject | None  # why the newest broken attempt broke, also while the job goes on
    requeued_from: str | None
    requeued_as: str | None
    metadata: dict[str, str] | None
    webhook: WebhookObject | None
    batch_id: str | None  # whose line it answers


class JobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool
    next_after: str | None = None  # what to send as `after` for the next page


def job_object(job: Job, position: int | None, predicted_wait_s: float | None = None) -> JobObject:
    return JobObject(
        id=job.id,
        state=job.state,
        model=job.model,
        attempt=job.attempt,
        failures=job.failures,
        priority=_PRIORITY_NAMES[job.priority],
        created_at=datetime.fromtimestamp(job.created_ms / 1000, UTC),
        started_at=_time(job.started_ms),
        finished_at=_time(job.finished_ms),
        deadline=_time(job.deadline_ms),
        worker=job.worker,
        workers=list(job.workers),
        position=position,
        predicted_wait_s=predicted_wait_s,
        last_seq=job.last_seq,
        result=_result_object(job.result),
        error=_error_object(job.error),
        last_error=_error_object(job.last_error),
        requeued_from=job.requeued_from,
        requeued_as=job.requeued_as,
        metadata=job.metadata,
        webhook=_webhook_object(job),
        batch_id=job.batch_id,
    )


def _webhook_object(job: Job) -> WebhookObject | None:
    if job.webhook is None:
        return None
    return WebhookObject(
        url=job.webhook.url.partition("?")[0],
        delivered=job.webhook_delivered,
        state="pending" if job.webhook_delivered is None else "delivered" if job.webhook_delivered else "dead",
        attempts=job.webhook_attempts,
        last_status=job.webhook_status,
    )


def _error_object(error: JobError | None) -> ErrorObject | None:
    return None if error is None else ErrorObject(code=error.code, message=error.message, param=error.param)


def _result_object(result: JobResult | None) -> ResultObject | None:
    if result is None:
        return None
    usage = result.usage
    return ResultObject(
        text=result.text,
        finish_reason=result.finish_reason,
        usage=None
        if usage is None
        else UsageObject(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        ),
    )


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


_PRIORITY_NAMES: dict[Priority, PriorityName] = {
    Priority.INTERACTIVE: "interactive",
    Priority.DEFAULT: "default",
    Priority.BATCH: "batch",
}
