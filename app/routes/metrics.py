"""GET /metrics, for Prometheus."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from app.fleet_counters import FleetCounters
from app.front import FrontDep
from app.openapi import other_answer
from tasks.errors import StoreUnavailable

router = APIRouter(tags=["Operations"])


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: other_answer("text/plain", "Prometheus' text format.")},
)
async def metrics(front: FrontDep) -> Response:
    snapshot, counters = None, None
    try:
        snapshot = await front.view.snapshot()
        counters = await to_thread.run_sync(FleetCounters.read, front.backend)
    except StoreUnavailable:
        pass  # this process's own figures, and that the store is down
    return Response(front.metrics.exposition(snapshot, counters), media_type=CONTENT_TYPE_LATEST)
