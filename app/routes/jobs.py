"""Native jobs: post, list, get (and wait), follow, cancel, requeue."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Query
from pydantic import WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from app import metadata_query, sse
from app.admission import deadline_ms, job_request, may_be_too_long
from app.answer_source import CACHE_HEADER
from app.attaching import attachments
from app.backend import Submitted
from app.errors import error_of
from app.following import Beat
from app.front import Front, FrontDep
from app.idempotency import IdempotencyKey, fingerprint
from app.json_body import JsonBodyRoute
from app.openapi import NATIVE_ERRORS, event_stream
from app.rate_limits import rate_limit_headers
from app.schemas.jobs import JobBody, JobList, JobObject, job_object
from app.sse import Chunks, ClientWatch, SseResponse
from tasks.answer_cache import CacheWish, answer_key
from tasks.errors import InvalidRequest, PromptTooLong, StoreUnavailable
from tasks.generation import GenerationRequest
from tasks.job_filter import JobFilter
from tasks.jobs import Job, JobId, JobState, Priority
from tasks.order import Order
from tasks.stream_events import End, Tokens, encode_event

router = APIRouter(tags=["Jobs"], responses=NATIVE_ERRORS, route_class=JsonBodyRoute)
EventId = Annotated[str | None, WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,18}$"})]
CLOSING = sse.comment("this server is shutting down; go on with Last-Event-ID")
AWAY = sse.comment("the store is away; go on with Last-Event-ID when it is back")
Place = tuple[int | None, float | None]  # in the line, and how many seconds that will take


@router.post("/v1/jobs", status_code=202, response_model=JobObject, summary="Take a job in and answer at once")
async def create_job(body: JobBody, request: Request, front: FrontDep, idempotency_key: IdempotencyKey) -> Response:
    offer = await front.view.resolve(body.model)
    generation = job_request(body, offer, front.settings)
    await front.grammars.check(generation)
    attached = await attachments(body, front)
    key = answer_key(generation, offer, has_seed=body.seed is not None)
    order = Order(
        offer=offer,
        priority=Priority.named(body.priority),
        deadline_ms=deadline_ms(body.deadline, await front.view.store_now_ms()),
        idempotency_key=idempotency_key,
        fingerprint=fingerprint(idempotency_key, request.url.path, body),
        attached=attached,
        wish=None if key is None else CacheWish(key=key, ends_with_clients=False),
    )
    submission = await to_thread.run_sync(front.backend.dispatcher.submit, generation, order)
    job = submission.job
    request.state.job_id = job.id
    if submission.is_new and may_be_too_long(generation, offer):
        await _await_count(front, job, generation)
    return await _accepted(front, submission)


@router.post(
    "/v1/jobs/{job_id}/requeue",
    status_code=202,
    response_model=JobObject,
    summary="Ask once more what a failed, cancelled or expired job asked; a job of its own",
)
async def requeue_job(job_id: str, front: FrontDep) -> Response:
    job = await to_thread.run_sync(front.backend.jobs.get, JobId(job_id))
    offer = await front.view.resolve(job.model)
    submission = await to_thread.run_sync(partial(front.backend.dispatcher.requeue, job, offer=offer))
    return await _accepted(front, submission)


@router.get(
    "/v1/jobs",
    summary="Jobs, newest first; with ?dead=true only dead letters",
    openapi_extra={"parameters": [metadata_query.PARAMETER]},
)
async def list_jobs(
    request: Request,
    front: FrontDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    state: JobState | None = None,
    model: str | None = None,
    dead: bool = False,
    after: str | None = None,
    batch_id: Annotated[str | None, Query(max_length=64)] = None,
) -> JobList:
    """Filters add up: `state`, `model`, `batch_id`, and `metadata[key]=value`, also several. While `has_more`, another
    page follows; `after` is the `next_after` of the page before, which holds also when its jobs are gone. A page may be
    short, or empty, before the last: one request looks at a bounded number of jobs, and few of them may fit.

    A batch lets go of a job a minute after its result is written down; from then on that is in the batch's files alone.

    A dead letter is a failed job whose request is not to blame: its attempts broke too often, or its model can't be
    served. It stays on this list until it is requeued, and is kept for KEEPWARM_DEAD_RETENTION_S."""

    if dead and after is not None:
        raise InvalidRequest("after: dead letters come on one page; ask for more of them with limit.", param="after")

    pairs = metadata_query.metadata_pairs(request.query_params.multi_items())
    wanted = JobFilter(state=state, model=model, batch_id=batch_id, metadata=pairs)

    def listed(job: Job) -> JobObject:
        return job_object(job, *_place(front, job))

    def read() -> JobList:
        lists = front.backend.job_lists
        if dead:
            found = lists.dead(limit + 1, wanted)
            return JobList(data=[listed(job) for job in found[:limit]], has_more=len(found) > limit)
        page = lists.recent(limit, wanted, after)
        return JobList(
            data=[listed(job) for job in page.jobs],
            has_more=page.next_after is not None,
            next_after=page.next_after,
        )

    return await to_thread.run_sync(read)


@router.get("/v1/jobs/{job_id}", summary="One job; with ?wait= as soon as it ends")
async def get_job(
    job_id: str, request: Request, front: FrontDep, wait: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0
) -> JobObject:
    job = await to_thread.run_sync(front.backend.jobs.get, JobId(job_id))
    if wait and not job.state.is_terminal:
        await _await_end(front, job, request, min(wait, front.settings.max_wait_s))
        job = await to_thread.run_sync(front.backend.jobs.get, job.id)
    return await _object(front, job)


@router.delete("/v1/jobs/{job_id}", summary="Cancel a job; one that has ended stays as it is")
async def cancel_job(job_id: str, front: FrontDep) -> JobObject:
    return await _object(front, await to_thread.run_sync(front.backend.jobs.cancel, JobId(job_id)))


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=Response,
    summary="The job's events, resumable, as SSE",
    responses={
        200: event_stream("Events, numbered by their `id`, until the job has ended."),
        204: {"description": "The job has ended, and the client has all of its events."},
    },
)
async def follow_job(
    job_id: str,
    request: Request,
    front: FrontDep,
    last_event_id: Annotated[EventId, Header()] = None,
    after: EventId = None,
) -> Response:
    job = await to_thread.run_sync(front.backend.jobs.get, JobId(job_id))
    after_seq = resume_point(last_event_id, after, job)
    if job.state.is_terminal and after_seq == job.last_seq:
        return Response(status_code=204)  # tells an EventSource that reconnects to stop
    return SseResponse(_events(front, job, after_seq, ClientWatch(request.receive)), {"x-keepwarm-job": job.id})


def resume_point(last_event_id: str | None, after: str | None, job: Job) -> int:
    """Number of the last event that the client has. Raises InvalidRequest.

    The header wins: a browser that reconnects sends it along with the URL's older ?after=."""
    param, value = ("Last-Event-ID", last_event_id) if last_event_id is not None else ("after", after or "0")
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise InvalidRequest(f"{param}: must be the id of an event, a whole number, not {value[:40]!r}.", param=param)
    if int(value) > job.last_seq:
        raise InvalidRequest(f"{param}: this job's newest event is {job.last_seq}, not {value}.", param=param)
    return int(value)


async def _events(front: Front, job: Job, after_seq: int, watch: ClientWatch) -> Chunks:
    """Numbered events are worded from what is stored alone, so that every reading has the same bytes."""
    beat = Beat(front.backend.jobs, job, keep_alive_s=front.settings.keep_alive_s)
    front.metrics.open_streams.inc()
    try:
        async with aclosing(front.backend.streams.follow_batches(job.id, after_seq)) as batches:
            async for batch in batches:
                chunk = b"".join(sse.event(_name(event), encode_event(event), seq) for seq, event in batch)
                if batch:
                    beat.saw(batch[-1][1])
                elif (place := await beat.place_in_line()) is not None:
                    chunk = sse.event("queued", encode_event(place))
                elif beat.is_keep_alive_due:
                    chunk = sse.KEEP_ALIVE
                if chunk:
                    beat.sent()
                    yield chunk
                if watch.has_left:
                    return
                if front.closing.is_due:  # the stream ends in order behind a whole event, and is resumed elsewhere
                    yield CLOSING
                    return
    except StoreUnavailable:  # for longer than the reader bridges
        yield AWAY
    finally:
        front.metrics.open_streams.dec()
        await watch.finish()


async def _await_count(front: Front, job: Job, generation: GenerationRequest) -> None:
    """Give a runner a moment to count a doubtful prompt. Raises JobEnded when it was too long."""
    try:
        async with asyncio.timeout(front.settings.prompt_check_s):
            async with aclosing(front.backend.streams.follow_batches(job.id)) as batches:
                async for batch in batches:
                    for _, event in batch:
                        if isinstance(event, Tokens):
                            return
                        if isinstance(event, End) and event.error and event.error.code == PromptTooLong.code:
                            raise error_of(event, generation)
    except TimeoutError:
        return


async def _await_end(front: Front, job: Job, request: Request, limit_s: float) -> None:
    watch = ClientWatch(request.receive)
    try:
        async with asyncio.timeout(limit_s):
            async with aclosing(front.backend.streams.follow_batches(job.id, job.last_seq)) as batches:
                async for _ in batches:
                    if watch.has_left or front.closing.is_due:
                        return
    except TimeoutError:
        return
    finally:
        await watch.finish()


async def _accepted(front: Front, submission: Submitted) -> Response:
    job = submission.job
    place: Place = (None, None)
    if job.state is JobState.QUEUED:
        place = await to_thread.run_sync(_with_wait, front, job, submission.position)
    headers = {"location": f"/v1/jobs/{job.id}", "x-keepwarm-job": job.id, **rate_limit_headers(submission.room)}
    if submission.cache is not None:
        headers[CACHE_HEADER] = submission.cache.value
    return Response(job_object(job, *place).model_dump_json(), 202, headers, "application/json")


async def _object(front: Front, job: Job) -> JobObject:
    return job_object(job, *await to_thread.run_sync(_place, front, job))


def _place(front: Front, job: Job) -> Place:
    return _with_wait(front, job, front.backend.jobs.position(job)) if job.state is JobState.QUEUED else (None, None)


def _with_wait(front: Front, job: Job, position: int | None) -> Place:
    if position is None:
        return None, None
    return position, front.backend.dispatcher.predicted_wait_s(job.model, job.priority, position)


def _name(event: object) -> str:
    return type(event).__name__.lower()
