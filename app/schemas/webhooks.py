"""Webhooks that were given up, as operators see them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel

from tasks.webhooks import DeadWebhook


class DeadWebhookObject(BaseModel):
    """Nobody was told that this job or batch has ended, and nobody will be."""

    id: str  # of the job or batch
    object: Literal["dead_webhook"] = "dead_webhook"
    origin: str | None  # of its URL; the path may hold a token
    state: str | None  # in which it ended
    ended_at: datetime | None
    given_up_at: datetime
    attempts: int
    last_status: str  # why the newest attempt failed


class DeadWebhookList(BaseModel):
    object: Literal["list"] = "list"
    data: list[DeadWebhookObject]
    has_more: bool


def dead_webhook_object(given_up_ms: int, dead: DeadWebhook) -> DeadWebhookObject:
    return DeadWebhookObject(
        id=dead.id,
        origin=dead.origin,
        state=dead.state,
        ended_at=None if dead.ended_ms is None else datetime.fromtimestamp(dead.ended_ms / 1000, UTC),
        given_up_at=datetime.fromtimestamp(given_up_ms / 1000, UTC),
        attempts=dead.attempts,
        last_status=dead.reason,
    )
