"""Prompts and models that are kept away because they kill what serves them: look, and let go."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter

from app.front import FrontDep
from app.openapi import NATIVE_ERRORS
from app.schemas.quarantine import QuarantineList, QuarantineObject, quarantine_object

router = APIRouter(tags=["Operations"], responses=NATIVE_ERRORS)


@router.get("/v1/quarantine", summary="What is in quarantine, the newest first")
async def list_quarantine(front: FrontDep) -> QuarantineList:
    entries = await to_thread.run_sync(front.backend.quarantine.all)
    return QuarantineList(data=[quarantine_object(entry) for entry in entries])


@router.delete("/v1/quarantine/{suspect_id:path}", summary="Lift one; the first eight digits of a digest will do")
async def lift_quarantine(suspect_id: str, front: FrontDep) -> QuarantineObject:
    return quarantine_object(await to_thread.run_sync(front.backend.quarantine.lift, suspect_id))
