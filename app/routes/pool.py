"""GET /v1/pool: what the workers hold and what waits."""

from __future__ import annotations

from fastapi import APIRouter

from app.front import FrontDep
from app.schemas.pool import PoolObject, pool_object

router = APIRouter(tags=["Keepwarm"])


@router.get("/v1/pool", summary="Workers, their runners, and the queues")
async def get_pool(front: FrontDep) -> PoolObject:
    return pool_object(await front.view.snapshot())
