"""GET /v1/pool: what the workers hold and what waits; /v1/pool/decisions: why."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query

from app.front import FrontDep
from app.openapi import NATIVE_ERRORS
from app.schemas.pool import DecisionList, PoolObject, decision_object, pool_object

router = APIRouter(tags=["Keepwarm"], responses=NATIVE_ERRORS)


@router.get("/v1/pool", summary="Workers, their runners, and the queues")
async def get_pool(front: FrontDep) -> PoolObject:
    return pool_object(await front.view.snapshot())


@router.get("/v1/pool/decisions", summary="What the controller decided, with its numbers, the newest first")
async def list_decisions(
    front: FrontDep,
    model: Annotated[str | None, Query(max_length=256, description="id or alias; of this model only")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> DecisionList:
    """Loads, evictions, waits, refusals, and why a model with waiting jobs gets no further replica. A decision that is
    taken again every tick is kept once. Of a LoRA adapter those about its base are told as well."""
    offer = (await front.view.snapshot()).catalog.resolve(model) if model is not None else None
    models = {offer.id, offer.runner_model} if offer is not None else ()
    read = partial(front.backend.decisions.decisions, limit, models=models)
    return DecisionList(data=[decision_object(each) for each in await to_thread.run_sync(read)])
