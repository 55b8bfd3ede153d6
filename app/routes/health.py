"""Liveness and readiness, for supervisors and load balancers."""

from __future__ import annotations

from typing import Literal

from anyio import to_thread
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse

from app.front import FrontDep
from tasks.errors import StoreUnavailable

router = APIRouter(tags=["Operations"])


class Alive(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(Alive):
    workers: int


class NotReady(BaseModel):
    status: Literal["unavailable"] = "unavailable"
    missing: Literal["store", "worker"]
    reason: str


@router.head("/livez", include_in_schema=False)  # what many uptime checkers send
@router.get("/livez", summary="The process answers")
async def livez() -> Alive:
    return Alive()


@router.head("/readyz", include_in_schema=False, response_model=Ready)
@router.get(
    "/readyz",
    summary="Jobs can be admitted and somebody is there to run them",
    response_model=Ready,
    responses={503: {"model": NotReady, "description": "Not now: the store or every worker is missing."}},
)
async def readyz(front: FrontDep) -> Ready | JSONResponse:
    try:
        await to_thread.run_sync(front.backend.ping)
        num_workers = len((await front.view.snapshot()).fleet.workers)
    except StoreUnavailable as error:
        return _not_ready(NotReady(missing="store", reason=str(error)))
    if num_workers == 0:
        reason = "no worker has sent a heartbeat; start one with `keepwarm worker`"
        return _not_ready(NotReady(missing="worker", reason=reason))
    return Ready(workers=num_workers)


def _not_ready(why: NotReady) -> JSONResponse:
    return JSONResponse(why.model_dump(), 503)
