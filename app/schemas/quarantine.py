"""What is kept away from the fleet, as operators see it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel

from app.schemas.jobs import ErrorObject
from tasks.quarantine import Quarantine


class QuarantineObject(BaseModel):
    """A prompt, by its digest alone, or a model. `id` is what lifts it."""

    id: str
    object: Literal["quarantine"] = "quarantine"
    kind: Literal["prompt", "model"]
    model: str
    digest: str | None
    since: datetime
    until: datetime
    reason: str
    cause: ErrorObject
    jobs: list[str]
    workers: list[str]


class QuarantineList(BaseModel):
    object: Literal["list"] = "list"
    data: list[QuarantineObject]


def quarantine_object(entry: Quarantine) -> QuarantineObject:
    suspect = entry.suspect
    return QuarantineObject(
        id=entry.id,
        kind=suspect.kind,
        model=suspect.model,
        digest=suspect.digest or None,
        since=datetime.fromtimestamp(entry.since_ms / 1000, UTC),
        until=datetime.fromtimestamp(entry.until_ms / 1000, UTC),
        reason=suspect.reason,
        cause=ErrorObject(code=suspect.cause.code, message=suspect.cause.message, param=suspect.cause.param),
        jobs=list(suspect.jobs),
        workers=list(suspect.workers),
    )
