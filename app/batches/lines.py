"""The lines of one batch on their way: a bounded window of requests under way, and what came of them.

One event loop; only what touches files or the store runs in threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import structlog
from anyio import to_thread

from app.batches.entry_gate import EntryGate
from app.batches.input_file import InputIndex, Line
from app.batches.line_call import LineAnswer
from app.batches.line_results import answered, unanswered
from app.batches.results import Results
from app.batches.surroundings import Surroundings
from app.idempotency import choice_key
from tasks.batches import Batch, BatchState, line_key
from tasks.errors import StoreUnavailable
from tasks.failpoints import failpoint
from tasks.generation import JsonObject
from tasks.jobs import JobId

LOOK_S = 2.0  # how often somebody who waits for room looks at the clock
FLUSH_S = 15.0  # results are written down at least this often
FLUSH_COUNT = 256  # or when so many have come together
LOOKUP = 500  # lines whose jobs are looked for at once
MAX_WINDOW_BYTES = 16 * 1024**2  # of the requests that are under way: they lie in the store
WIND_DOWN_TURN_S = 0.5
MAX_ENTERING = 8  # lines that are on their way into the queue at once; enough to keep a store at work

_log = structlog.get_logger(__name__)


class Caller(Protocol):
    async def call(
        self, endpoint: str, body: JsonObject, idempotency_key: str, on_admitted: Callable[[], None]
    ) -> LineAnswer: ...


@dataclass(slots=True, kw_only=True)
class Lines:
    """`must_end` says that the batch was cancelled, has expired, or is somebody else's."""

    batch: Batch
    index: InputIndex
    source: BinaryIO
    results: Results
    caller: Caller
    around: Surroundings
    must_end: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    _in_flight: dict[asyncio.Task[None], int] = field(default_factory=dict)  # → entry
    _jobs: dict[int, tuple[JobId, ...]] = field(default_factory=dict)  # of results that are not written down yet
    _is_winding_down: bool = False
    _gate: EntryGate = field(default_factory=lambda: EntryGate(MAX_ENTERING))
    _cut_short: set[int] = field(default_factory=set)  # lines whose jobs were cancelled because the batch ends
    _flushing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)  # the source has one position
    _flushed_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._flushed_at = self.clock()

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def is_complete(self) -> bool:
        return all(map(self.results.is_done, self.index.numbers))

    async def feed(self) -> None:
        """Until all lines are done, or the batch must end.

        A model's lines begin when those of the model before are done, or at once where it is warm: so that a batch
        of several models loads each of them once."""
        groups = self.index.by_model()
        while groups and not self.must_end():
            warm = await to_thread.run_sync(self.around.warm_models, tuple(groups))
            model = next((model for model in groups if model in warm), next(iter(groups)))
            if model not in warm:
                await self._await_room(0)
            for entry in groups.pop(model):
                if self.results.is_done(self.index.numbers[entry]):
                    continue
                await self._await_room(self.around.window - 1, MAX_WINDOW_BYTES - self.index.sizes[entry])
                if self.must_end():
                    return
                self._start(entry)
        await self._await_room(0)

    async def wind_down(self, end: BatchState) -> None:
        """Stop what runs, keep what has been answered, and say of every other line why it was not."""
        self._is_winding_down = True
        with_jobs = await self._cancel_jobs(range(len(self.index)))
        own = list(self._in_flight.values())  # only these can have got a job since
        while self._in_flight:
            await asyncio.wait(self._in_flight, timeout=WIND_DOWN_TURN_S)
            with_jobs |= await self._cancel_jobs(own)
        for entry in sorted(with_jobs):  # of a feeder that died: answered, or cancelled just now
            if self._is_open(entry):
                while len(self._in_flight) >= self.around.window:
                    await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                self._start(entry)
        while self._in_flight:
            await asyncio.wait(self._in_flight)
        rest = [entry for entry, number in enumerate(self.index.numbers) if not self.results.is_done(number)]
        for start in range(0, len(rest), LOOKUP):
            some = rest[start : start + LOOKUP]
            for entry, custom_id in zip(some, await self._custom_ids(some), strict=True):
                self.results.add(unanswered(self.batch.id, self.index.numbers[entry], custom_id, end))

    async def flush(self) -> None:
        """Write results down, and let their jobs go from the store."""
        self._flushed_at = self.clock()
        async with self._flushing:
            pending = self.results.take_pending()
            if not pending:
                return
            failpoint("batch_before_flush")
            try:
                await to_thread.run_sync(self.results.write_segment, pending)
            except BaseException:
                self.results.put_back(pending)
                raise
        safe = {
            choice_key(line_key(self.batch.id, result.line), index): job_id
            for result in pending
            for index, job_id in enumerate(self._jobs.pop(result.line, ()))
        }
        try:
            await to_thread.run_sync(self.around.admissions.forget, safe)
        except StoreUnavailable as error:
            _log.warning("batch_jobs_not_forgotten", batch_id=self.batch.id, error=str(error))  # they expire

    async def abandon(self) -> None:
        """Stop following; the jobs go on, and the next feeder finds them."""
        tasks = list(self._in_flight)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _await_room(self, count: int, num_bytes: int = 0) -> None:
        """Until no more than `count` requests of together no more than `num_bytes` are under way, or an end is near."""
        while self._in_flight and not self.must_end():
            if len(self._in_flight) <= count and self._bytes_in_flight() <= max(num_bytes, 0):
                return
            await asyncio.wait(self._in_flight, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            is_due = self.clock() - self._flushed_at >= FLUSH_S
            if is_due or self.results.num_pending >= FLUSH_COUNT:
                await self.flush()

    def _bytes_in_flight(self) -> int:
        return sum(self.index.sizes[entry] for entry in self._in_flight.values())

    def _start(self, entry: int) -> None:
        task = asyncio.create_task(self._answer(entry))
        self._in_flight[task] = entry
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("line_broke", batch_id=self.batch.id, error=repr(error))  # the line is not done

    async def _answer(self, entry: int) -> None:
        number, line = self.index.numbers[entry], None
        key = line_key(self.batch.id, number)
        was_winding_down = self._is_winding_down
        while True:
            async with self._gate.entering() as came_in:
                if self._is_winding_down and not was_winding_down:
                    return
                line = line or await self._read(entry)
                answer = await self.caller.call(self.batch.endpoint, line.body, key, came_in)
            if answer.retry_after_s is None:
                break
            if self._is_winding_down:
                return
            await asyncio.sleep(answer.retry_after_s)
        self._jobs[number] = answer.job_ids
        if self._is_winding_down and answer.error_code == "job_cancelled":
            self._cut_short.add(number)  # our own doing: the line is told that its batch ended
            return
        self.results.add(answered(self.batch.id, number, line.custom_id, answer))

    async def _read(self, entry: int) -> Line:
        """In a thread: the source may lie far away, and the lease is kept by this loop."""
        async with self._reading:
            return await to_thread.run_sync(self.index.read, self.source, entry)

    async def _custom_ids(self, entries: Sequence[int]) -> list[str]:
        def read() -> list[str]:
            return [self.index.read(self.source, entry).custom_id for entry in entries]

        async with self._reading:
            return await to_thread.run_sync(read)

    def _is_open(self, entry: int) -> bool:
        number = self.index.numbers[entry]
        return not self.results.is_done(number) and number not in self._cut_short

    async def _cancel_jobs(self, of: Iterable[int]) -> set[int]:
        """Cancel the jobs of those of the entries whose line is not done; the entries that have one."""
        entries = [entry for entry in of if self._is_open(entry)]
        found: set[int] = set()
        for start in range(0, len(entries), LOOKUP):
            some = entries[start : start + LOOKUP]
            keys = [line_key(self.batch.id, self.index.numbers[entry]) for entry in some]
            found.update(await to_thread.run_sync(self._cancel_some, some, keys))
        return found

    def _cancel_some(self, entries: list[int], keys: list[str]) -> list[int]:
        jobs = self.around.admissions.of_keys(keys)
        with_jobs = [(entry, job_id) for entry, job_id in zip(entries, jobs, strict=True) if job_id is not None]
        for _, job_id in with_jobs:
            self.around.cancel_job(job_id)
        return [entry for entry, _ in with_jobs]
