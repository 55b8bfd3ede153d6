"""Where the events of one answer come from: a job of its own, an answer that is kept, or the job of an equal request.

Only requests that the cache may answer (`tasks.answer_cache`) ever have another source than their own job. A job that
several clients wait for ends when the last of them leaves. When it ends without an answer, each of the others asks
again, and what the new source says is passed on from where the old one stopped.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from anyio import to_thread

from app.backend import Batch, Submitted
from app.front import Front
from app.passed_on import PassedOn
from tasks.answer_cache import AnswerKey, CacheOutcome, CacheWish
from tasks.attachments import NOTHING, Attachments
from tasks.errors import JobNotFound
from tasks.fleet import ModelOffer
from tasks.forecast import QueueRoom
from tasks.job_request import JobRequest
from tasks.jobs import Job, JobId, JobState, Priority, new_job_id
from tasks.order import Order
from tasks.stream_events import End, NumberedEvent

if TYPE_CHECKING:  # no module of the front loads a client of the store
    from tasks.store.token_reader import Follower

CACHE_HEADER = "x-keepwarm-cache"
MAX_FOLLOWED = 2  # jobs of others that end without an answer; after that a request computes its own


class AnswerSource:
    """Nothing of it may be used before `open`.

    `key`: under which the answer is kept; None: it is not. `job_id`: of the new job, if it has to be that one. With an
    idempotency key the job outlives its clients, as with `outlives_client`, and is never another request's."""

    def __init__(
        self,
        front: Front,
        work: JobRequest,
        *,
        offer: ModelOffer,
        priority: Priority,
        idempotency_key: str | None,
        fingerprint: str | None,
        key: AnswerKey | None,
        job_id: JobId | None = None,
        outlives_client: bool = False,
        attached: Attachments = NOTHING,
    ) -> None:
        self._front = front
        self._work = work
        self._offer = offer
        self._priority = priority
        self._idempotency_key = idempotency_key
        self._fingerprint = fingerprint
        self._key = key
        self._job_id = job_id
        self._attached = attached
        self.ends_with_client = idempotency_key is None and not outlives_client
        self._has_left = False
        self._heard_by: Follower | None = None
        self._submitted: Submitted
        self.job: Job  # what the answer is called after
        self.cache: CacheOutcome | None
        self.batches: AsyncGenerator[Batch, None]

    async def open(self) -> None:
        """Raises what admission raises."""
        submitted, self.batches = await self._submit(may_follow=True)
        self.job, self.cache = submitted.job, submitted.cache
        if submitted.follows is not None:
            self.batches = self._following(self.batches)

    @property
    def record_id(self) -> JobId | None:
        """Id of the job that a client may ask for; None when the answer has none of its own."""
        return None if self._submitted.follows is not None or self._submitted.answer else self.job.id

    @property
    def room(self) -> QueueRoom | None:
        """In the line that a new job of this answer joined."""
        return self._submitted.room

    @property
    def waiting_job(self) -> Job:
        """The job that stands in the line."""
        follows = self._submitted.follows
        return self.job if follows is None else msgspec.structs.replace(self.job, id=follows)

    async def serving_job(self, *, is_needed: bool = False) -> Job:
        """The job once its first event is out: with the model that answers it for good (`tasks.controller.fallback`).

        Of a model without a fallback nothing is read unless `is_needed`, nor of an answer that is kept: that is never a
        fallback's."""
        if not (is_needed or self._offer.fallback is not None) or self._submitted.answer:
            return self.job
        serving = await to_thread.run_sync(self._front.backend.jobs.get, self.waiting_job.id)
        return msgspec.structs.replace(serving, id=self.job.id, created_ms=self.job.created_ms)

    async def close(self) -> None:
        """Nothing more is read here; the job goes on. A generator that was never begun has no end that lets go of what
        it was given."""
        await self.batches.aclose()
        if self._heard_by is not None:
            await self._front.backend.streams.ignore(self._heard_by)

    async def leave(self) -> None:
        """Nobody wants this answer any more. A store that is away is told later."""
        if not self._has_left:
            self._has_left = True
            await self._give_up(self._submitted)

    async def _give_up(self, submitted: Submitted) -> None:
        jobs, job_id = self._front.backend.jobs, submitted.job.id
        if submitted.follows is not None:
            await self._front.departures.tell(partial(jobs.leave, submitted.follows, job_id), job_id)
        elif submitted.cache is CacheOutcome.MISS and self.ends_with_client:
            await self._front.departures.tell(partial(jobs.leave, job_id, job_id), job_id)
        elif not submitted.answer:
            await self._front.departures.tell(partial(jobs.cancel, job_id), job_id)

    async def _submit(self, *, may_follow: bool) -> tuple[Submitted, AsyncGenerator[Batch, None]]:
        streams = self._front.backend.streams
        job_id = self._job_id or new_job_id()
        follower = await streams.listen(job_id)  # its first token will be on its way before submit returns
        order = Order(
            offer=self._offer,
            priority=self._priority,
            idempotency_key=self._idempotency_key,
            fingerprint=self._fingerprint,
            job_id=job_id,
            attached=self._attached,
            wish=self._wish(may_follow),
        )
        try:
            submitted = await to_thread.run_sync(self._front.backend.dispatcher.submit, self._work, order)
        except BaseException:
            await streams.ignore(follower)
            raise
        self._submitted = submitted
        if submitted.is_heard:
            self._heard_by = follower
            return submitted, streams.follow_batches(job_id, follower=follower)
        await streams.ignore(follower)
        if submitted.answer:
            return submitted, played(submitted.answer)
        return submitted, streams.follow_batches(submitted.follows or submitted.job.id)

    def _wish(self, may_follow: bool) -> CacheWish | None:
        if self._key is None:
            return None
        alone = self.ends_with_client
        return CacheWish(key=self._key, ends_with_clients=alone, may_follow=alone and may_follow)

    async def _following(self, batches: AsyncGenerator[Batch, None]) -> AsyncGenerator[Batch, None]:
        """What the followed job says; if it ends without an answer, what comes instead."""
        passed_on = PassedOn()
        num_followed = 0
        while True:
            num_followed += self._submitted.follows is not None
            is_answered = True
            try:
                async with aclosing(batches):
                    async for batch in batches:
                        if self._submitted.follows is not None and ended_badly(batch):
                            is_answered = False
                            break
                        yield passed_on.news(batch)
            except JobNotFound:
                if self._submitted.follows is None:
                    raise
                is_answered = False
            if is_answered:
                return
            passed_on.begin_again()
            submitted, batches = await self._submit(may_follow=num_followed < MAX_FOLLOWED)
            if self._has_left:  # what was left was the job before
                await self._give_up(submitted)


async def played(answer: Sequence[NumberedEvent]) -> AsyncGenerator[Batch, None]:
    """An answer that is kept, as one batch."""
    yield list(enumerate(answer, start=1))


def ended_badly(batch: Batch) -> bool:
    return any(isinstance(event, End) and event.state is not JobState.SUCCEEDED for _, event in batch)
