"""/v1/responses: create, get and follow, cancel, delete, list the input; as official OpenAI clients use it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Literal

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.backend import KeptResponse
from app.following import Transcript
from app.front import Front, FrontDep
from app.idempotency import IdempotencyKey, fingerprint
from app.json_body import JsonBodyRoute
from app.openapi import OPENAI_ERRORS, SSE_TOO
from app.responses.live import answer_response, follow_response
from app.responses.objects import ended_object, outcome_of, response_object
from app.responses.planning import PlannedResponse, planned_response
from app.schemas.response_answers import ResponseDeleted, ResponseItemList, ResponseObject
from app.schemas.responses import ResponseBody
from tasks.errors import InvalidRequest, JobNotFound, PreviousResponseNotFound, ResponseNotFound
from tasks.fleet import ModelOffer
from tasks.generation import TokenLogprob
from tasks.jobs import Job, JobId, new_job_id
from tasks.responses import job_of, response_id

router = APIRouter(tags=["OpenAI"], responses=OPENAI_ERRORS, route_class=JsonBodyRoute)
CANCEL_WAIT_S = 2.0  # for the worker of a cancelled response, which ends it within one step


@router.post(
    "/v1/responses",
    summary="Answer an input, whole, as a stream, or in the background",
    response_model=ResponseObject,
    responses=SSE_TOO,
)
async def create_response(
    body: ResponseBody, request: Request, front: FrontDep, idempotency_key: IdempotencyKey
) -> Response:
    offer = await front.view.resolve(body.model)
    if body.previous_response_id is None:
        planned = _planned(front, body, offer)
    else:  # a long conversation takes a while to read, from the store and for calls in its answers
        planned = await to_thread.run_sync(_planned, front, body, offer)
    await front.grammars.check(planned.generation)
    return await answer_response(
        front,
        request,
        planned,
        offer=offer,
        priority=body.level,
        is_stream=bool(body.stream),
        idempotency_key=idempotency_key,
        fingerprint=fingerprint(idempotency_key, request.url.path, body),
    )


@router.get(
    "/v1/responses/{response_id}",
    response_model=ResponseObject,
    responses=SSE_TOO,
    summary="A stored response; with ?stream=true its events, resumable behind any of them",
)
async def get_response(
    response_id: str,
    request: Request,
    front: FrontDep,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
) -> Response:
    kept = await to_thread.run_sync(front.backend.responses.get, _job_id(response_id))
    if stream:
        return await _stream(front, request, kept, -1 if starting_after is None else starting_after)
    if starting_after is not None:
        raise InvalidRequest("starting_after: needs stream to be true.", param="starting_after")
    return await _object(front, kept)


@router.post(
    "/v1/responses/{response_id}/cancel", response_model=ResponseObject, summary="Cancel a response in the background"
)
async def cancel_response(response_id: str, front: FrontDep) -> Response:
    """One that has ended stays as it is."""
    kept = await to_thread.run_sync(front.backend.responses.get, _job_id(response_id))
    if not kept.response.is_background:
        message = "Only responses with background=true are cancelled here; any other ends with its connection."
        raise InvalidRequest(message, param="response_id")
    if kept.outcome is None:
        job = await to_thread.run_sync(front.backend.jobs.cancel, kept.job_id)
        if not job.state.is_terminal:
            await _await_end(front, job)
        kept = await to_thread.run_sync(front.backend.responses.get, kept.job_id)
    return await _object(front, kept)


@router.delete("/v1/responses/{response_id}", summary="Delete a response and its content")
async def delete_response(response_id: str, front: FrontDep) -> ResponseDeleted:
    """One that is being answered is cancelled."""

    def delete() -> None:
        job_id = front.backend.responses.get(_job_id(response_id)).job_id
        if front.backend.responses.forget(job_id):
            with suppress(JobNotFound):
                front.backend.jobs.cancel(job_id)

    await to_thread.run_sync(delete)
    return ResponseDeleted(id=response_id)


@router.get(
    "/v1/responses/{response_id}/input_items",
    response_model=ResponseItemList,
    summary="The input of a response, without earlier turns",
)
async def list_input_items(
    response_id: str,
    front: FrontDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    kept = await to_thread.run_sync(front.backend.responses.get, _job_id(response_id))
    items = list(kept.response.items) if order == "asc" else list(reversed(kept.response.items))
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(f"after: this response has no input item {after[:64]!r}.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return _json({"object": "list", "data": page, **ends, "has_more": len(items) > limit})


def _job_id(response_id: str) -> JobId:
    job_id = job_of(response_id)
    if job_id is None:
        raise ResponseNotFound(response_id)
    return job_id


def _planned(front: Front, body: ResponseBody, offer: ModelOffer) -> PlannedResponse:
    earlier = _conversation(front, body.previous_response_id)
    return planned_response(body, offer, front.settings, earlier, new_job_id())


def _conversation(front: Front, previous: str | None) -> Sequence[KeptResponse]:
    if previous is None:
        return ()
    try:
        return front.backend.responses.chain(_job_id(previous), front.settings.max_response_chain)
    except ResponseNotFound as gone:
        raise PreviousResponseNotFound(str(gone)) from None


async def _stream(front: Front, request: Request, kept: KeptResponse, after: int) -> Response:
    try:
        job = await to_thread.run_sync(front.backend.jobs.get, kept.job_id)
        return await follow_response(front, request, job, kept.response, after)
    except JobNotFound:
        message = "stream: the events of this response are no longer kept; get it without stream."
        raise InvalidRequest(message, param="stream") from None


async def _object(front: Front, kept: KeptResponse) -> Response:
    """Of a job that an older worker ended, only the job's own record says how."""
    outcome = kept.outcome
    if outcome is None:
        job = await _job_of(front, kept)
        outcome = outcome_of(job)
        if outcome is None:
            return _json(response_object(kept.response, job))
    logprobs = await _logprobs(front, kept.job_id) if kept.response.has_logprobs else ()
    return _json(ended_object(kept.response, kept.job_id, outcome, logprobs))


async def _job_of(front: Front, kept: KeptResponse) -> Job:
    try:
        return await to_thread.run_sync(front.backend.jobs.get, kept.job_id)
    except JobNotFound:  # it was never admitted
        raise ResponseNotFound(response_id(kept.job_id)) from None


async def _logprobs(front: Front, job_id: JobId) -> Sequence[TokenLogprob]:
    """They are in the token stream only, and end with it."""
    transcript = Transcript()
    with suppress(JobNotFound):
        async with aclosing(front.backend.streams.follow_batches(job_id)) as batches:
            async for batch in batches:
                transcript.add(batch)
    return transcript.logprobs


async def _await_end(front: Front, job: Job) -> None:
    with suppress(TimeoutError, JobNotFound):
        async with asyncio.timeout(CANCEL_WAIT_S):
            async with aclosing(front.backend.streams.follow_batches(job.id, job.last_seq)) as batches:
                async for _ in batches:
                    pass


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), 200, media_type="application/json")
