"""Models: OpenAI's list and object with Keepwarm's details, and an operator's wish to warm or evict one."""

from __future__ import annotations

from typing import Literal

from anyio import to_thread
from fastapi import APIRouter

from app.front import Front, FrontDep
from app.openapi import NATIVE_ERRORS, OPENAI_ERRORS
from app.schemas.pool import AskObject, ModelList, ModelObject, model_object
from tasks.errors import ModelLoadFailed

router = APIRouter()


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", tags=["OpenAI"], responses=OPENAI_ERRORS, summary="All models that can be asked for")
async def list_models(front: FrontDep) -> ModelList:
    snapshot = await front.view.snapshot()
    return ModelList(data=[model_object(offer, snapshot) for offer in snapshot.catalog])


@router.get("/v1/models/{model_id:path}", tags=["OpenAI"], responses=OPENAI_ERRORS, summary="One model, by id or alias")
async def get_model(model_id: str, front: FrontDep) -> ModelObject:
    snapshot = await front.view.snapshot()
    return model_object(snapshot.catalog.resolve(model_id), snapshot)


@router.post(
    "/v1/models/{model_id:path}/warm",
    tags=["Keepwarm"],
    status_code=202,
    responses=NATIVE_ERRORS,
    summary="Load it ahead of use",
    description="Refused with the reason when no worker can load it now.",
)
async def warm_model(model_id: str, front: FrontDep) -> AskObject:
    return await _ask(front, model_id, "warm")


@router.post(
    "/v1/models/{model_id:path}/evict",
    tags=["Keepwarm"],
    status_code=202,
    responses=NATIVE_ERRORS,
    summary="Free its memory",
)
async def evict_model(model_id: str, front: FrontDep) -> AskObject:
    return await _ask(front, model_id, "evict")


async def _ask(front: Front, name: str, what: Literal["warm", "evict"]) -> AskObject:
    """A LoRA adapter is warm while its base is: what is asked of it is asked of the base, and the answer says so."""
    snapshot = await front.view.snapshot()
    offer = snapshot.catalog.resolve(name)
    if what == "warm" and offer.failure is not None and not offer.is_usable:
        raise ModelLoadFailed(f"'{offer.id}' can't be loaded: {offer.failure}")
    model = offer.runner_model
    await to_thread.run_sync(front.backend.fleet.ask, model, what)
    return AskObject(model=model, asked=what)
