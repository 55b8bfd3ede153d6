"""Liveness and readiness, for supervisors and load balancers."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import JSONResponse

from app.front import FrontDep
from tasks.errors import StoreUnavailable

router = APIRouter(tags=["Operations"])


@router.get("/livez", summary="The process answers")
async def livez() -> JSONResponse:
    return JSONResponse({"status": "ok"})


@router.get("/readyz", summary="Jobs can be admitted and somebody is there to run them")
async def readyz(front: FrontDep) -> JSONResponse:
    try:
        await to_thread.run_sync(front.backend.ping)
        num_workers = len((await front.view.snapshot()).fleet.workers)
    except StoreUnavailable as error:
        return JSONResponse({"status": "unavailable", "missing": "store", "reason": str(error)}, 503)
    if num_workers == 0:
        reason = "no worker has sent a heartbeat; start one with `keepwarm worker`"
        return JSONResponse({"status": "unavailable", "missing": "worker", "reason": reason}, 503)
    return JSONResponse({"status": "ok", "workers": num_workers})
