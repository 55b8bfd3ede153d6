"""The hash fields of a job record ↔ `Job`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tasks.attachments import decode_metadata, decode_webhook
from tasks.jobs import Job, JobError, JobId, JobResult, JobState, Priority, WorkerId

_RESULT = msgspec.json.Decoder(JobResult)
_ERROR = msgspec.json.Decoder(JobError)


# What a Job is made of. The request, which may have megabytes, is read only by whoever needs it.
FIELDS = (
    "state",
    "model",
    "priority",
    "attempt",
    "seq",
    "created",
    "deadline",
    "started",
    "finished",
    "worker",
    "cancel",
    "result",
    "error",
    "failures",
    "last_error",
    "workers",
    "requeued_from",
    "requeued_as",
    "metadata",
    "webhook",
    "webhook_delivered",
    "webhook_tries",
    "webhook_last",
    "batch",
)
_NAMES = tuple(name.encode() for name in FIELDS)


def job_of(job_id: JobId, values: Sequence[bytes | None]) -> Job | None:
    """Decode the reply to HMGET with FIELDS; None when there is no record."""
    fields = {name: value for name, value in zip(_NAMES, values, strict=True) if value is not None}
    return _job(job_id, fields) if fields else None


def _job(job_id: JobId, fields: Mapping[bytes, bytes]) -> Job:
    worker = fields.get(b"worker")
    result = fields.get(b"result")
    error = fields.get(b"error")
    last_error = fields.get(b"last_error")
    batch = fields.get(b"batch")
    delivered, last_webhook = fields.get(b"webhook_delivered"), fields.get(b"webhook_last")
    return Job(
        id=job_id,
        state=JobState(fields[b"state"].decode()),
        model=fields[b"model"].decode(),
        priority=Priority(int(fields[b"priority"])),
        attempt=int(fields[b"attempt"]),
        last_seq=int(fields[b"seq"]),
        created_ms=int(fields[b"created"]),
        deadline_ms=_optional_int(fields.get(b"deadline")),
        started_ms=_optional_int(fields.get(b"started")),
        finished_ms=_optional_int(fields.get(b"finished")),
        worker=WorkerId(worker.decode()) if worker else None,
        cancel_requested=b"cancel" in fields,
        result=_RESULT.decode(result) if result else None,
        error=_ERROR.decode(error) if error else None,
        failures=int(fields.get(b"failures", 0)),
        last_error=_ERROR.decode(last_error) if last_error else None,
        workers=tuple(WorkerId(owner) for owner in fields.get(b"workers", b"").decode().split()),
        requeued_from=_optional_id(fields.get(b"requeued_from")),
        requeued_as=_optional_id(fields.get(b"requeued_as")),
        metadata=decode_metadata(fields.get(b"metadata")),
        webhook=decode_webhook(fields.get(b"webhook")),
        webhook_delivered=None if delivered is None else delivered == b"1",
        webhook_attempts=int(fields.get(b"webhook_tries", 0)),
        webhook_status=last_webhook.decode() if last_webhook else None,
        batch_id=batch.decode() if batch else None,
    )


def _optional_id(value: bytes | None) -> JobId | None:
    return None if value is None else JobId(value.decode())


def _optional_int(value: bytes | None) -> int | None:
    return None if value is None else int(value)
