"""POST, GET /v1/batches: requests in a file, answered when there is room, as official OpenAI clients use them."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query
from starlette.requests import Request

from app.attaching import attachments
from app.batches.endpoints import endpoints_of
from app.front import Front, FrontDep
from app.json_body import JsonBodyRoute
from app.openapi import OPENAI_ERRORS
from app.schemas.batches import PURPOSE, BatchBody, BatchList, BatchObject, batch_object
from tasks.attachments import Attachments
from tasks.batches import Batch
from tasks.errors import InvalidRequest

router = APIRouter(tags=["OpenAI"], responses=OPENAI_ERRORS, route_class=JsonBodyRoute)


@router.post("/v1/batches", summary="Have the requests of a file answered")
async def create_batch(body: BatchBody, request: Request, front: FrontDep) -> BatchObject:
    endpoints = endpoints_of(request.app)
    if body.endpoint not in endpoints:
        message = f"endpoint: must be one of {', '.join(endpoints)}, not {body.endpoint!r}."
        raise InvalidRequest(message, param="endpoint")
    attached = await attachments(body, front)
    batch = await to_thread.run_sync(_create, front, body, attached)
    return batch_object(batch)


@router.get("/v1/batches", summary="Batches, newest first")
async def list_batches(
    front: FrontDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> BatchList:
    batches, has_more = await to_thread.run_sync(partial(front.backend.batches.page, after=after, limit=limit))
    data = [batch_object(batch) for batch in batches]
    return BatchList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more
    )


@router.get("/v1/batches/{batch_id}", summary="One batch")
async def get_batch(batch_id: str, front: FrontDep) -> BatchObject:
    return batch_object(await to_thread.run_sync(front.backend.batches.get, batch_id))


@router.post("/v1/batches/{batch_id}/cancel", summary="Stop a batch; what was answered stays")
async def cancel_batch(batch_id: str, front: FrontDep) -> BatchObject:
    return batch_object(await to_thread.run_sync(front.backend.batches.cancel, batch_id))


def _create(front: Front, body: BatchBody, attached: Attachments) -> Batch:
    file = front.backend.files.get(body.input_file_id)
    if file.purpose != PURPOSE:
        message = f"input_file_id: the file's purpose is '{file.purpose}', and must be '{PURPOSE}'."
        raise InvalidRequest(message, param="input_file_id")
    batch = front.backend.batches.create(endpoint=body.endpoint, input_file_id=body.input_file_id, attached=attached)
    front.backend.feed(batch.id)
    return batch
