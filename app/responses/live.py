"""Admit a response's job, and give its answer: whole, as a stream, or later.

A stream is made of the token stream by `ResponseEvents`, the same for those who asked and those who come back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from app import sse
from app.answering import LiveAnswer, admit, silence
from app.backend import Batch
from app.errors import AnswerIncomplete, JobEnded
from app.following import Beat, Transcript
from app.front import Front
from app.responses.events import ResponseEvents
from app.responses.objects import closing_object, is_complete, outcome_of, response_object
from app.responses.output import whole_output
from app.responses.planning import PlannedResponse
from app.sse import Chunks, ClientWatch, SseResponse
from tasks.attachments import Attachments
from tasks.errors import KeepwarmError
from tasks.fleet import ModelOffer
from tasks.generation import JsonObject
from tasks.jobs import Job, Priority
from tasks.responses import Outcome, StoredResponse
from tasks.stream_events import End, Loading, Queued, Reset, Started, StreamEvent, Tokens


async def answer_response(
    front: Front,
    request: Request,
    planned: PlannedResponse,
    *,
    offer: ModelOffer,
    priority: Priority,
    is_stream: bool,
    idempotency_key: str | None,
    fingerprint: str | None,
) -> Response:
    """Raises what admission raises, and JobEnded, AnswerTookTooLong, StoreUnavailable once the job is admitted."""
    response = planned.response
    live = await _admitted(front, request, planned, offer, priority, idempotency_key, fingerprint)
    try:
        if response.is_background and not is_stream:
            return await _later(live, response)
        if not is_stream:
            return await live.whole(lambda job: _WholeResponse(job, response), needs_ended_job=True)
        return await _streamed(front, live, response)
    except JobEnded as ended:
        if ended.param == "messages":  # the job's word for it
            ended.param = "input"
        raise


async def follow_response(
    front: Front, request: Request, job: Job, response: StoredResponse, after: int
) -> SseResponse:
    """The events behind number `after`. Raises JobNotFound when the token stream is gone."""
    batches = front.backend.streams.follow_batches(job.id)
    try:
        first = await anext(batches)
    except BaseException:
        await batches.aclose()
        raise
    watch = ClientWatch(request.receive)
    events = ResponseEvents(response, job.id, job.created_ms, after=after)
    stream = ResponseStream(front, job, batches, watch, events)
    return SseResponse(stream.chunks(first), {"x-keepwarm-job": job.id})


class ResponseStream:
    """One client that follows one response."""

    def __init__(
        self,
        front: Front,
        job: Job,
        batches: AsyncGenerator[Batch, None],
        watch: ClientWatch,
        events: ResponseEvents,
        *,
        saw: Callable[[Batch], None] | None = None,
        on_break: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """`saw` hears of what comes behind the first batch; `on_break` is called when this stream ends without the
        answer: because that had to start over, the front ends, or the store is away for too long."""
        self._front = front
        self._job = job
        self._batches = batches
        self._watch = watch
        self._events = events
        self._saw = saw
        self._on_break = on_break

    async def chunks(self, batch: Batch) -> Chunks:
        """Bytes to send, one chunk per batch; `batch` is the first one."""
        beat = Beat(self._front.backend.jobs, self._job, keep_alive_s=self._front.settings.keep_alive_s)
        self._front.metrics.open_streams.inc()
        chunk = self._events.opening()
        try:
            while True:
                chunk += await self._worded(batch, beat) if batch else await silence(beat)
                if self._events.is_over:
                    await self._watch.finish()
                if chunk:
                    beat.sent()
                    yield chunk
                if self._events.is_over or self._watch.has_left:
                    return
                chunk = b""
                batch = await self._next()
        except KeepwarmError as error:
            yield self._events.trouble(error.code, str(error))
            await self._broke()
        finally:
            await self._watch.finish()
            self._front.metrics.open_streams.dec()
            await self._batches.aclose()

    async def _next(self) -> Batch:
        self._front.closing.check()
        try:
            batch = await anext(self._batches)
        except StopAsyncIteration:
            raise AnswerIncomplete() from None
        if self._saw is not None:
            self._saw(batch)
        return batch

    async def _broke(self) -> None:
        if self._on_break is not None:
            await self._on_break()

    async def _worded(self, batch: Batch, beat: Beat) -> bytes:
        parts = [await self._event(event) for _, event in batch if not self._events.is_over]
        beat.saw(batch[-1][1])
        return b"".join(parts)

    async def _event(self, event: StreamEvent) -> bytes:
        match event:
            case Tokens():
                return self._events.tokens(event)
            case Reset():
                worded = self._events.reset(event)
                if self._events.is_over:
                    await self._broke()
                return worded
            case End():
                job = await to_thread.run_sync(self._front.backend.jobs.get, self._job.id)
                return self._events.end(event, _ended(job))
            case Started():
                return self._events.begun()
            case Queued():
                return sse.comment(f"queued position={event.position}")
            case Loading():
                return sse.comment(f"loading {event.model} {event.progress:.0%}")
            case _:  # vectors, which no job that generates has
                return b""


class _WholeResponse:
    """The form of a complete answer; `job` is the ended one."""

    def __init__(self, job: Job, response: StoredResponse) -> None:
        self._job = job
        self._response = response

    def whole(self, transcript: Transcript, end: End) -> JsonObject:
        items = whole_output(
            self._job.id,
            self._response.tools,
            transcript.text,
            transcript.logprobs,
            is_complete=is_complete(end),
        )
        return closing_object(self._response, self._job.id, _ended(self._job), end, items)


async def _admitted(
    front: Front,
    request: Request,
    planned: PlannedResponse,
    offer: ModelOffer,
    priority: Priority,
    idempotency_key: str | None,
    fingerprint: str | None,
) -> LiveAnswer:
    """The record comes first: the job's end would not find it otherwise."""
    records, job_id = front.backend.responses, planned.job_id
    await to_thread.run_sync(records.keep, job_id, planned.response if planned.is_stored else None)
    try:
        live = await admit(
            front,
            request,
            planned.generation,
            offer,
            priority,
            idempotency_key,
            fingerprint,
            job_id=job_id,
            outlives_client=planned.response.is_background,
            attached=Attachments(metadata=planned.response.echo["metadata"] or None),
        )
    except BaseException:
        await to_thread.run_sync(records.discard, job_id)
        raise
    if live.job.id != job_id:  # an earlier request with this idempotency key has a record of its own
        try:
            await to_thread.run_sync(records.discard, job_id)
        except BaseException:
            await live.close()
            raise
    return live


async def _later(live: LiveAnswer, response: StoredResponse) -> Response:
    """With an idempotency key, an earlier request may have brought it to its end."""
    await live.close()
    return Response(msgspec.json.encode(response_object(response, live.job)), 200, live.headers, "application/json")


async def _streamed(front: Front, live: LiveAnswer, response: StoredResponse) -> Response:
    """Only what ends before it began has a status of its own; a background response ends in its stream."""
    first: Batch = []
    if not response.is_background:
        try:
            first = await live.hold_back()
        except BaseException:
            await live.close()
            raise
    events = ResponseEvents(response, live.job.id, live.job.created_ms)
    stream = ResponseStream(
        front,
        live.job,
        live.batches,
        live.watch,
        events,
        saw=live.meter.saw,
        on_break=live.part,
    )
    return SseResponse(stream.chunks(first), live.headers)


def _ended(job: Job) -> Outcome:
    outcome = outcome_of(job)
    if outcome is None:  # its closing event is out, and both are written at once
        raise AnswerIncomplete()
    return outcome
