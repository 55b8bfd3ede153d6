"""Several choices for one request (`n`): as many jobs, whose answers become one.

Each job is admitted, runs and is resumed on its own. What a client gets is complete or an error: the first choice that
fails ends the others, for the answer can't become complete any more. Anything else that keeps a client from its answer,
be it that it leaves, ends only jobs without an idempotency key: with one it can come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from app import sse
from app.answer_source import AnswerSource
from app.answering import STATUS_CLIENT_LEFT, answer, has_begun, in_band, silence, source_headers
from app.backend import Batch
from app.errors import AnswerIncomplete, AnswerTookTooLong, JobEnded, StreamReset, error_of
from app.following import Beat, Transcript
from app.front import Front
from app.idempotency import choice_key
from app.metrics import AnswerMeter
from app.openai_forms import AnswerForm
from app.sse import Chunks, ClientWatch, SseResponse
from tasks.answer_cache import answer_key
from tasks.attachments import NOTHING, Attachments
from tasks.errors import KeepwarmError
from tasks.fleet import ModelOffer
from tasks.generation import MAX_SEED, GenerationRequest
from tasks.jobs import Job, JobState, Priority, Usage
from tasks.stream_events import End, Loading, Queued, Reset, Tokens

FormOf = Callable[[Job, int], AnswerForm]  # of the first job, whose id the answer has, and of the choice's index
_log = structlog.get_logger(__name__)
_READ_AHEAD = 4  # batches per choice


async def answer_with_choices(
    front: Front,
    request: Request,
    generation: GenerationRequest,
    n: int,
    *,
    offer: ModelOffer,
    priority: Priority,
    form_of: FormOf,
    is_stream: bool,
    has_seed: bool,
    idempotency_key: str | None,
    fingerprint: str | None,
    attached: Attachments = NOTHING,
) -> Response:
    """`app.answering.answer` with n choices. `has_seed`: the client chose one.

    Raises what `answer` does; then no job of the request is left but those under an idempotency key."""
    if n == 1:
        return await answer(
            front,
            request,
            generation,
            offer=offer,
            priority=priority,
            form_of=lambda job: form_of(job, 0),
            is_stream=is_stream,
            key=answer_key(generation, offer, has_seed=has_seed),
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
            attached=attached,
        )
    arrived = time.monotonic()
    sources: list[AnswerSource] = []
    try:
        for index, choice in enumerate(choice_requests(generation, n)):
            source = AnswerSource(
                front,
                choice,
                offer=offer,
                priority=priority,
                idempotency_key=idempotency_key and choice_key(idempotency_key, index),
                fingerprint=fingerprint,
                key=answer_key(choice, offer, has_seed=has_seed),
                attached=attached,
            )
            await source.open()
            sources.append(source)
    except BaseException:  # whatever it is: nobody waits for these any more
        await part_from_all(sources)
        for source in sources:
            await source.close()
        raise
    if sources[0].record_id is not None:
        request.state.job_id = sources[0].record_id  # from here on errors carry it
    choices = LiveChoices(front, request, generation, sources, arrived, form_of=form_of)
    return await (choices.stream() if is_stream else choices.whole())


def choice_requests(generation: GenerationRequest, n: int) -> list[GenerationRequest]:
    """The first is the request itself, so that more choices don't change it; the others have the seeds behind its own,
    which share no random numbers (`workers.engine.sampling.uniform` mixes them)."""
    sampling = generation.sampling
    seeds = [(sampling.seed + index) % MAX_SEED for index in range(n)]
    return [
        msgspec.structs.replace(generation, sampling=msgspec.structs.replace(sampling, seed=seed)) for seed in seeds
    ]


async def part_from_all(sources: Sequence[AnswerSource]) -> None:
    """The client gets no answer here. It comes back for those with an idempotency key: they go on."""
    await leave_all([source for source in sources if source.ends_with_client])


async def leave_all(sources: Sequence[AnswerSource]) -> None:
    """Those that have ended stay as they are. One that can't be ended keeps none of the others alive."""
    for source in sources:
        try:
            await source.leave()
        except Exception as error:
            _log.warning("choice_not_cancelled", job_id=source.job.id, error=repr(error))


def usage_of_all(ends: Sequence[End]) -> Usage | None:
    """As OpenAI counts: the prompt once, however often it was read, and all that was generated."""
    usages = [end.usage for end in ends if end.usage is not None]
    if not usages:
        return None
    return Usage(
        prompt_tokens=usages[0].prompt_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=usages[0].cached_tokens,
    )


class LiveChoices:
    """The admitted jobs of one request and the client that waits for all of them."""

    def __init__(
        self,
        front: Front,
        request: Request,
        generation: GenerationRequest,
        sources: Sequence[AnswerSource],
        arrived: float,
        *,
        form_of: FormOf,
    ) -> None:
        self._front = front
        self._generation = generation
        self._sources = sources
        self._arrived = arrived
        self._form_of = form_of
        metrics = front.metrics.of_job(sources[0].job)
        self._meters = [AnswerMeter(metrics, arrived) for _ in sources]
        self._headers = source_headers(sources)
        self._watch = ClientWatch(request.receive, self._part)
        self._batches = merged([source.batches for source in sources])
        self._ends: dict[int, End] = {}  # of the choices that are complete, by index
        self._forms: dict[int, AnswerForm] = {}  # of the choices that are being streamed
        self._has_text = [False] * len(sources)  # the client has part of this choice

    @property
    def _is_over(self) -> bool:
        return len(self._ends) == len(self._sources)

    @property
    def _first_open(self) -> int:
        """The choice whose silence counts: each has its own beats, and they end with it."""
        return next(index for index in range(len(self._sources)) if index not in self._ends)

    async def _form(self, index: int) -> AnswerForm:
        """Only once the choice has begun: each names the model that answers it."""
        serving = await self._sources[index].serving_job()
        return self._form_of(msgspec.structs.replace(self._sources[0].job, model=serving.model), index)

    async def whole(self) -> Response:
        transcripts = [Transcript() for _ in self._sources]
        timeout_s = self._front.settings.sync_timeout_s
        try:
            async with aclosing(self._batches):
                async for index, batch in self._batches:
                    transcripts[index].add(batch)
                    self._saw(index, batch)
                    if self._watch.has_left:
                        return Response(status_code=STATUS_CLIENT_LEFT)
                    if self._is_over:
                        break
                    if time.monotonic() - self._arrived > timeout_s:
                        raise AnswerTookTooLong(timeout_s, goes_on=not self._sources[0].ends_with_client)
                    self._front.closing.check()
            if not self._is_over:
                raise AnswerIncomplete()
        except KeepwarmError as error:
            await self._give_up(error)
            raise
        finally:
            await self._watch.finish()
        forms = [await self._form(index) for index in range(len(self._sources))]
        choices = [
            form.choice(transcript, self._ends[index])
            for index, (form, transcript) in enumerate(zip(forms, transcripts, strict=True))
        ]
        body = msgspec.json.encode(forms[0].body(choices, self._usage()))
        return Response(body, 200, self._headers, "application/json")

    async def stream(self) -> Response:
        """Raises what goes wrong before the status is sent."""
        held_back: list[tuple[int, Batch]] = []
        until = self._arrived + self._front.settings.hold_back_s
        try:
            async for index, batch in self._batches:
                held_back.append((index, batch))
                self._saw(index, batch)
                if has_begun(batch) or time.monotonic() >= until:
                    break
        except BaseException as error:
            if isinstance(error, KeepwarmError):
                await self._give_up(error)
            await self._watch.finish()
            await self._batches.aclose()
            raise
        return SseResponse(self._chunks(held_back), self._headers)

    async def _chunks(self, held_back: Sequence[tuple[int, Batch]]) -> Chunks:
        beat = Beat(
            self._front.backend.jobs, self._sources[0].waiting_job, keep_alive_s=self._front.settings.keep_alive_s
        )
        self._front.metrics.open_streams.inc()
        try:
            for index, batch in held_back:
                if chunk := await self._word(index, batch):
                    yield chunk
            while not self._is_over and not self._watch.has_left:
                index, batch = await self._next_batch()
                chunk = await self._word(index, batch)
                if batch:
                    beat.saw(batch[-1][1])
                elif index == self._first_open:
                    chunk = await silence(beat)
                if chunk:
                    beat.sent()
                    yield chunk
            await self._watch.finish()
            if self._is_over:
                yield self._forms[0].closing(self._usage())
        except KeepwarmError as error:
            yield in_band(error)
            await self._give_up(error)
        finally:
            await self._watch.finish()
            self._front.metrics.open_streams.dec()
            await self._batches.aclose()

    async def _next_batch(self) -> tuple[int, Batch]:
        self._front.closing.check()
        try:
            index, batch = await anext(self._batches)
        except StopAsyncIteration:
            raise AnswerIncomplete() from None
        self._saw(index, batch)
        return index, batch

    def _saw(self, index: int, batch: Batch) -> None:
        """Raises JobEnded when this choice has no answer."""
        self._meters[index].saw(batch)
        for _, event in batch:
            if isinstance(event, End):
                if event.state is not JobState.SUCCEEDED:
                    raise error_of(event, self._generation)
                self._ends[index] = event

    async def _word(self, index: int, batch: Batch) -> bytes:
        if index not in self._forms and has_begun(batch):
            self._forms[index] = await self._form(index)
        form = self._forms.get(index)
        parts: list[bytes] = []
        for _, event in batch:
            if form is not None and isinstance(event, Tokens | End):
                if not self._has_text[index]:
                    self._has_text[index] = True
                    parts.append(form.first())
                parts.append(form.piece(event) if isinstance(event, Tokens) else form.finish(event))
            elif isinstance(event, Reset):
                if self._has_text[index]:
                    raise StreamReset(event.reason)
            elif isinstance(event, Queued):
                parts.append(sse.comment(f"queued position={event.position}"))
            elif isinstance(event, Loading):
                parts.append(sse.comment(f"loading {event.model} {event.progress:.0%}"))
        return b"".join(parts)

    def _usage(self) -> Usage | None:
        return usage_of_all([self._ends[index] for index in range(len(self._sources))])

    async def _give_up(self, error: KeepwarmError) -> None:
        await (leave_all(self._sources) if isinstance(error, JobEnded) else self._part())

    async def _part(self) -> None:
        await part_from_all(self._sources)


async def merged(streams: Sequence[AsyncGenerator[Batch, None]]) -> AsyncGenerator[tuple[int, Batch], None]:
    """The batches of all streams as they come, each with the index of its stream. Ends after the last of them."""
    arrived: asyncio.Queue[tuple[int, Batch | Exception | None]] = asyncio.Queue(_READ_AHEAD * len(streams))

    async def read(index: int, stream: AsyncGenerator[Batch, None]) -> None:
        try:
            async with aclosing(stream):
                async for batch in stream:
                    await arrived.put((index, batch))
            await arrived.put((index, None))
        except Exception as error:  # raised again where somebody waits for it
            await arrived.put((index, error))

    readers = [asyncio.create_task(read(index, stream)) for index, stream in enumerate(streams)]
    open_streams = len(streams)
    try:
        while open_streams:
            index, item = await arrived.get()
            if item is None:
                open_streams -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield index, item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
