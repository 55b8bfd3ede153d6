"""Webhooks that were given up after all attempts."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query

from app.front import FrontDep
from app.openapi import NATIVE_ERRORS
from app.schemas.webhooks import DeadWebhookList, dead_webhook_object

router = APIRouter(tags=["Operations"], responses=NATIVE_ERRORS)


@router.get("/v1/webhooks/dead", summary="Webhooks that were given up, the newest first")
async def list_dead_webhooks(front: FrontDep, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> DeadWebhookList:
    """A thousand at most, for KEEPWARM_DEAD_RETENTION_S each."""
    found = await to_thread.run_sync(front.backend.outbox.dead, limit + 1)
    return DeadWebhookList(data=[dead_webhook_object(*each) for each in found[:limit]], has_more=len(found) > limit)
