"""A job seen from a waiting request: its place in the line, the beats of a silent stream, its transcript."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from anyio import to_thread

from app.backend import Batch, Jobs
from tasks.errors import KeepwarmError
from tasks.generation import TokenLogprob
from tasks.jobs import Job
from tasks.stream_events import End, Loading, Queued, Reset, Started, StreamEvent, Tokens, Vectors

POSITION_INTERVAL_S = 4.0  # a waiting client is told its place in the line about this often
POSITION_TIMEOUT_S = 1.0  # a store that hangs must not keep a stream from its keep-alives


class Beat:
    """What to tell a client while its stream is silent. The clock is any that counts seconds."""

    def __init__(
        self, jobs: Jobs, job: Job, *, keep_alive_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = jobs
        self._job = job
        self._keep_alive_s = keep_alive_s
        self._clock = clock
        self._sent_at = clock()
        self._asked_at: float | None = None
        self._is_waiting = True

    def sent(self) -> None:
        """Something went out."""
        self._sent_at = self._clock()

    def saw(self, event: StreamEvent) -> None:
        """Tokens and a started attempt mean that the job no longer stands in the line."""
        self._is_waiting = isinstance(event, Queued | Loading)

    async def place_in_line(self) -> Queued | None:
        """Where the job stands, if it waits and was not asked for lately. A store that is away says nothing."""
        now = self._clock()
        if not self._is_waiting or (self._asked_at is not None and now - self._asked_at < POSITION_INTERVAL_S):
            return None
        self._asked_at = now
        try:
            async with asyncio.timeout(POSITION_TIMEOUT_S):
                position = await to_thread.run_sync(self._jobs.position, self._job, abandon_on_cancel=True)
        except (KeepwarmError, TimeoutError):
            return None
        return None if position is None else Queued(position=position)

    @property
    def is_keep_alive_due(self) -> bool:
        """Beats come about every second, so one that is due within the next second is due now."""
        return self._clock() - self._sent_at >= self._keep_alive_s - 1


@dataclass(slots=True)
class Transcript:
    """The whole answer of a job, put together from its events."""

    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    end: End | None = None

    def add(self, batch: Batch) -> None:
        for _, event in batch:
            match event:
                case Tokens():
                    self.pieces.append(event.text)
                    self.logprobs.extend(event.logprobs)
                case Vectors():
                    self.rows.extend(event.rows)
                case Reset():
                    self.rows.clear()
                    self.pieces.clear()
                    self.logprobs.clear()
                case End():
                    self.end = event
                case Queued() | Loading() | Started():
                    pass
                case _:
                    assert_never(event)

    @property
    def text(self) -> str:
        return "".join(self.pieces)
