"""Answer a synchronous request: admit its job, follow it, and word what comes, whole or as a stream.

A stream's status is held back until the first event, or for up to a second, so that an error that comes fast
(a prompt that is too long, a model that can't be loaded) has the right one. Later errors go in-band.
The job of a client that leaves before its answer is complete is cancelled, unless the request has an idempotency key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from operator import attrgetter

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app import sse
from app.answer_source import CACHE_HEADER, AnswerSource
from app.backend import Batch
from app.error_handlers import facts_of
from app.errors import AnswerIncomplete, AnswerTookTooLong, StreamReset, error_of
from app.following import Beat, Transcript
from app.front import Front
from app.metrics import AnswerMeter
from app.openai_forms import AnswerForm, WholeForm
from app.rate_limits import rate_limit_headers
from app.sse import Chunks, ClientWatch, SseResponse
from tasks.answer_cache import AnswerKey, CacheOutcome, answer_key
from tasks.attachments import NOTHING, Attachments
from tasks.errors import KeepwarmError
from tasks.fleet import ModelOffer
from tasks.job_request import JobRequest
from tasks.jobs import Job, JobId, JobState, Priority
from tasks.stream_events import End, Loading, Queued, Reset, Tokens

STATUS_CLIENT_LEFT = 499  # nobody reads it; for the log and the metrics


async def answer(
    front: Front,
    request: Request,
    work: JobRequest,
    *,
    offer: ModelOffer,
    priority: Priority,
    form_of: Callable[[Job], AnswerForm],
    is_stream: bool,
    key: AnswerKey | None = None,
    idempotency_key: str | None = None,
    fingerprint: str | None = None,
    attached: Attachments = NOTHING,
) -> Response:
    """With an idempotency key the answer may be that of a job which an earlier request began, and the job outlives its
    clients: one that lost its connection comes back with the key. `key`: the cache may answer.

    Raises what admission raises, and JobEnded, AnswerTookTooLong, StoreUnavailable once the job is admitted."""
    live = await admit(front, request, work, offer, priority, idempotency_key, fingerprint, key=key, attached=attached)
    return await (live.stream(form_of) if is_stream else live.whole(form_of))


async def answer_whole(
    front: Front,
    request: Request,
    work: JobRequest,
    *,
    offer: ModelOffer,
    priority: Priority,
    form_of: Callable[[Job], WholeForm],
    idempotency_key: str | None = None,
    fingerprint: str | None = None,
) -> Response:
    """`answer` for encodings, which never stream, and which the cache may always answer."""
    key = answer_key(work, offer, has_seed=False)
    live = await admit(front, request, work, offer, priority, idempotency_key, fingerprint, key=key)
    return await live.whole(form_of)


async def admit(
    front: Front,
    request: Request,
    work: JobRequest,
    offer: ModelOffer,
    priority: Priority,
    idempotency_key: str | None,
    fingerprint: str | None,
    *,
    key: AnswerKey | None = None,
    job_id: JobId | None = None,
    outlives_client: bool = False,
    attached: Attachments = NOTHING,
) -> LiveAnswer:
    """`key`: the cache may answer. `job_id`: of the new job, where something is known of it before. `outlives_client`:
    also without an idempotency key."""
    arrived = time.monotonic()
    source = AnswerSource(
        front,
        work,
        offer=offer,
        priority=priority,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
        key=key,
        job_id=job_id,
        outlives_client=outlives_client,
        attached=attached,
    )
    await source.open()
    if source.record_id is not None:
        request.state.job_id = source.record_id  # from here on errors carry it
    return LiveAnswer(front, request, work, source, arrived)


def source_headers(sources: Sequence[AnswerSource]) -> dict[str, str]:
    """Which jobs a client may ask about, what the cache did, and how much room is left for further requests; of several
    choices the least lucky one counts."""
    rooms = [source.room for source in sources if source.room is not None]
    headers = rate_limit_headers(min(rooms, key=attrgetter("remaining"), default=None))
    if job_ids := [source.record_id for source in sources if source.record_id is not None]:
        headers["x-keepwarm-job"] = ", ".join(job_ids)
    if outcomes := {source.cache for source in sources if source.cache is not None}:
        headers[CACHE_HEADER] = max(outcomes, key=list(CacheOutcome).index).value
    return headers


class LiveAnswer:
    """One admitted job and the client that waits for it."""

    def __init__(
        self,
        front: Front,
        request: Request,
        work: JobRequest,
        source: AnswerSource,
        arrived: float,
    ) -> None:
        self._front = front
        self._work = work
        self._source = source
        self.job = source.job
        self._arrived = arrived
        self.meter = AnswerMeter(front.metrics.of_job(source.job), arrived)
        self.headers = source_headers([source])
        self.watch = ClientWatch(request.receive, source.leave if source.ends_with_client else None)
        self.batches = source.batches
        self._has_text = False  # the client has part of the answer
        self._is_over = False  # nothing more will be sent

    async def whole(self, form_of: Callable[[Job], WholeForm], *, needs_ended_job: bool = False) -> Response:
        """The complete answer in one body. `needs_ended_job`: its form says more of the job than its model."""
        transcript = Transcript()
        timeout_s = self._front.settings.sync_timeout_s
        try:
            async with aclosing(self.batches):
                async for batch in self.batches:
                    transcript.add(batch)
                    self.meter.saw(batch)
                    if self.watch.has_left:
                        return Response(status_code=STATUS_CLIENT_LEFT)
                    if transcript.end is not None:
                        break
                    if time.monotonic() - self._arrived > timeout_s:
                        raise AnswerTookTooLong(timeout_s, goes_on=not self._source.ends_with_client)
                    self._front.closing.check()
        except KeepwarmError:
            await self.part()
            raise
        finally:
            await self.watch.finish()
        end = self._success(transcript.end)
        form = form_of(await self._source.serving_job(is_needed=needs_ended_job))
        body = msgspec.json.encode(form.whole(transcript, end))
        return Response(body, 200, self.headers, "application/json")

    async def stream(self, form_of: Callable[[Job], AnswerForm]) -> Response:
        """Raises what goes wrong before the status is sent."""
        try:
            held_back = await self.hold_back()
        except BaseException:
            await self.close()
            raise
        return SseResponse(self._chunks(form_of, held_back), self.headers)

    async def hold_back(self) -> Batch:
        """What comes first. Raises JobEnded when it says that there is no answer."""
        held_back: Batch = []
        until = self._arrived + self._front.settings.hold_back_s
        try:
            async for batch in self.batches:
                held_back += batch
                self.meter.saw(batch)
                if has_begun(batch) or time.monotonic() >= until:
                    break
        except KeepwarmError:
            await self.part()
            raise
        first = next((event for seq, event in held_back if seq is not None), None)
        if isinstance(first, End):
            self._success(first)
        return held_back

    async def _chunks(self, form_of: Callable[[Job], AnswerForm], batch: Batch) -> Chunks:
        """Bytes to send, one chunk per batch. Ends after the job's end, an error, or the client's leaving."""
        form: AnswerForm | None = None  # there is none before the first numbered event: it names the model
        beat = Beat(self._front.backend.jobs, self._source.waiting_job, keep_alive_s=self._front.settings.keep_alive_s)
        self._front.metrics.open_streams.inc()
        try:
            while True:
                if form is None and has_begun(batch):
                    form = form_of(await self._source.serving_job())
                chunk = self._word(form, batch, beat) if batch else await silence(beat)
                if self._is_over:
                    await self.watch.finish()
                if chunk:
                    beat.sent()
                    yield chunk
                if self._is_over or self.watch.has_left:
                    return
                batch = await self._next_batch()
        except KeepwarmError as error:
            yield in_band(error)
            await self.part()
        finally:
            await self.watch.finish()
            self._front.metrics.open_streams.dec()
            await self.batches.aclose()

    async def _next_batch(self) -> Batch:
        self._front.closing.check()
        try:
            batch = await anext(self.batches)
        except StopAsyncIteration:
            raise AnswerIncomplete() from None
        self.meter.saw(batch)
        return batch

    def _word(self, form: AnswerForm | None, batch: Batch, beat: Beat) -> bytes:
        parts: list[bytes] = []
        for _, event in batch:
            if form is not None and isinstance(event, Tokens):
                if not self._has_text:
                    self._has_text = True
                    parts.append(form.first())
                parts.append(form.piece(event))
            elif form is not None and isinstance(event, End):
                parts.append(self._word_end(form, event))
            elif isinstance(event, Reset):
                if self._has_text:
                    raise StreamReset(event.reason)
            elif isinstance(event, Queued):
                parts.append(sse.comment(f"queued position={event.position}"))
            elif isinstance(event, Loading):
                parts.append(sse.comment(f"loading {event.model} {event.progress:.0%}"))
        beat.saw(batch[-1][1])
        return b"".join(parts)

    def _word_end(self, form: AnswerForm, end: End) -> bytes:
        self._is_over = True
        if end.state is not JobState.SUCCEEDED:
            return in_band(error_of(end, self._work))
        return (b"" if self._has_text else form.first()) + form.last(end)

    def _success(self, end: End | None) -> End:
        if end is None:
            raise AnswerIncomplete()
        if end.state is not JobState.SUCCEEDED:
            raise error_of(end, self._work)
        return end

    async def part(self) -> None:
        """The client gets no answer here. With an idempotency key it can come back for it."""
        if self._source.ends_with_client:
            await self._source.leave()

    async def close(self) -> None:
        """Neither the client nor the job is followed any more; both go on."""
        await self.watch.finish()
        await self._source.close()


def has_begun(batch: Batch) -> bool:
    """Whether it holds more than notices."""
    return any(seq is not None for seq, _ in batch)


async def silence(beat: Beat) -> bytes:
    if (place := await beat.place_in_line()) is not None:
        return sse.comment(f"queued position={place.position}")
    return sse.KEEP_ALIVE if beat.is_keep_alive_due else b""


def in_band(error: KeepwarmError) -> bytes:
    """An error after the status was sent; official SDKs raise it. No [DONE] follows: the answer is incomplete."""
    return sse.data(msgspec.json.encode(facts_of(error).openai_body()))
