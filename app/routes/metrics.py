"""GET /metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from app.front import FrontDep
from tasks.errors import StoreUnavailable

router = APIRouter(tags=["Operations"])


@router.get("/metrics", summary="Prometheus metrics")
async def metrics(front: FrontDep) -> Response:
    try:
        snapshot = await front.view.snapshot()
    except StoreUnavailable:
        snapshot = None
    return Response(front.metrics.exposition(snapshot), media_type=CONTENT_TYPE_LATEST)
