"""Feed one batch: from its input file through a bounded window into the models' queues, and into its two files.

1  Read the input once: what is wrong with it fails the batch, else the lines are known.
2  Take over what earlier feeders have done.
3  Send lines, a window at a time, one model after the other; each answer is a result (`lines.py`).
4  Meanwhile renew the lease and note the progress.
5  All lines done: write the files. Cancelled or expired: stop what runs, keep what is there, write the files.

Any step may be the last one of this process: the next feeder begins at 1, finds the results that were written down,
and the jobs of the others by their lines' keys. Losing the lease ends a feeder without another word.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

import structlog
from anyio import to_thread

from app.batches.contents import content_path
from app.batches.input_file import InputIndex, index_lines
from app.batches.lines import Caller, Lines
from app.batches.results import Results
from app.batches.surroundings import Surroundings
from tasks.batches import MAX_BREAKS, Batch, BatchCounts, BatchState, LineError
from tasks.errors import FileMissing, StoreUnavailable
from tasks.failpoints import failpoint
from tasks.files import BATCH_OUTPUT, StoredFile, output_file_id

LOOK_S = 2.0  # how often a feeder looks whether it is to stop, and renews its lease; or every third of that

_log = structlog.get_logger(__name__)


class FeederStopped(Exception):
    """Another feeder has the batch, or this process ends: leave everything as it is."""


def describe(error: Exception) -> str:
    """What broke, for whoever made the batch: no path, and nothing of the input, as messages of exceptions may have."""
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__} ({reason})" if reason else type(error).__name__


@dataclass(slots=True, kw_only=True)
class Feeder:
    batch: Batch
    epoch: int
    around: Surroundings
    caller: Caller
    is_stopping: Callable[[], bool]  # the process was told to end
    expires_in_s: float
    clock: Callable[[], float] = time.monotonic
    _state: BatchState = field(init=False)
    _results: Results = field(init=False)
    _lines: Lines | None = None  # None: the input is not read yet, or is no good
    _expires_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._state = self.batch.state
        self._results = Results(self.around.contents, self.batch.id, self.epoch)
        self._expires_at = self.clock() + self.expires_in_s

    async def run(self) -> None:
        """Returns when the batch has ended, or this feeder's part in it."""
        keeper = asyncio.create_task(self._keep(), name="batch-keeper")
        work = asyncio.create_task(self._work(), name="batch-work")
        try:
            await asyncio.wait({keeper, work}, return_when=asyncio.FIRST_COMPLETED)
            (work if work.done() else keeper).result()
        except FeederStopped as reason:
            _log.info("feeder_stopped", batch_id=self.batch.id, reason=str(reason))
        finally:
            keeper.cancel()
            work.cancel()
            await asyncio.gather(keeper, work, return_exceptions=True)
            if self._lines is not None:
                await self._lines.abandon()

    # ---- 1, 2, 5: from the first line to the files

    async def _work(self) -> None:
        if self.batch.breaks >= MAX_BREAKS:
            await self._give_up()
            return
        try:
            with self.around.contents.reading(content_path(self.batch.input_file_id)) as source:
                await self._through(source)
        except FileMissing:
            message = "The input file is gone; what was answered before is in the files of this batch."
            await self._fail((LineError(code="input_file_missing", message=message),))

    async def _through(self, source: BinaryIO) -> None:
        read = partial(index_lines, source, self.batch.endpoint, max_line_bytes=self.around.max_line_bytes)
        index = await to_thread.run_sync(read)
        errors = tuple(index.errors) or await self._unknown_models(index)
        if self._state is BatchState.VALIDATING and errors:
            await self._fail(errors)
            return
        await to_thread.run_sync(self._results.load)
        lines = self._lines = Lines(
            batch=self.batch,
            index=index,
            source=source,
            results=self._results,
            caller=self.caller,
            around=self.around,
            must_end=self._must_end,
        )
        if self._state is BatchState.VALIDATING:
            models = set(index.models)
            await self._move(BatchState.IN_PROGRESS, model=models.pop() if len(models) == 1 else None)
        if self._state is BatchState.IN_PROGRESS:
            await lines.feed()
        end = BatchState.COMPLETED
        if not lines.is_complete():
            if not self._must_end():
                raise RuntimeError("a line has neither an answer nor an error")  # the next feeder tries again
            end = BatchState.CANCELLED if self._state is BatchState.CANCELLING else BatchState.EXPIRED
            await lines.wind_down(end)
        await self._finish(lines, end)

    async def _unknown_models(self, index: InputIndex) -> tuple[LineError, ...]:
        """One error per model if no line names a model that exists; single wrong lines get their own answer."""
        first = {model: entries[0] for model, entries in index.by_model().items()}
        unknown = await to_thread.run_sync(self.around.unknown_models, tuple(first))
        if len(unknown) < len(first):
            return ()
        return tuple(
            LineError(code=error.code, line=index.numbers[first[model]], message=str(error), param="body.model")
            for model, error in unknown.items()
        )

    async def _finish(self, lines: Lines, end: BatchState) -> None:
        await lines.flush()
        if end is BatchState.COMPLETED and await self._move(BatchState.FINALIZING) is BatchState.CANCELLING:
            end = BatchState.CANCELLED  # asked for when the last line was done: all of them are kept
        await self._end(end)

    async def _fail(self, errors: tuple[LineError, ...]) -> None:
        if self._state is not BatchState.VALIDATING:
            await to_thread.run_sync(self._results.load)
        await self._end(BatchState.FAILED, errors=errors)

    async def _give_up(self) -> None:
        """After feeder upon feeder broke: fail, with the files if they can be written, which may be what broke."""
        message = (
            f"{self.batch.breaks} attempts at this batch broke one after the other, the last one by "
            f"{self.batch.broke_by}; the log of the batcher has the details."
        )
        errors = (LineError(code="batch_broken", message=message),)
        try:
            await self._fail(errors)
        except FeederStopped:
            raise
        except Exception as error:
            _log.exception("batch_files_not_written", batch_id=self.batch.id, reason=describe(error))
            if await self._move(BatchState.FAILED, errors=errors) is not BatchState.FAILED:
                raise FeederStopped(f"the batch became {self._state}") from error

    async def _end(self, end: BatchState, **fields: Any) -> None:
        output = await to_thread.run_sync(partial(self._store_file, "output", is_ok=True))
        error = await to_thread.run_sync(partial(self._store_file, "error", is_ok=False))
        failpoint("batch_files_written")
        if await self._move(end, output_file_id=output, error_file_id=error, **fields) is not end:
            raise FeederStopped(f"the batch became {self._state}")
        await to_thread.run_sync(self._results.delete)
        _log.info("batch_ended", batch_id=self.batch.id, state=end.value, counts=self._progress())

    def _store_file(self, kind: str, *, is_ok: bool) -> str | None:
        """The id of the output or error file; None when no line belongs there."""
        file_id = output_file_id(self.batch.id, kind)
        num_bytes = self._results.write_file(file_id, is_ok=is_ok)
        if not num_bytes:
            return None
        now_ms = self.around.files.now_ms()
        self.around.files.add(
            StoredFile(
                id=file_id,
                filename=f"{self.batch.id}_{kind}.jsonl",
                purpose=BATCH_OUTPUT,
                bytes=num_bytes,
                created_ms=now_ms,
                expires_ms=now_ms + self.around.file_retention_ms,
            )
        )
        return file_id

    # ---- 4: lease, progress, state

    def _must_end(self) -> bool:
        return self._state is not BatchState.IN_PROGRESS or self.clock() >= self._expires_at

    async def _keep(self) -> None:
        """Ends only by FeederStopped."""
        lost_at = self.clock() + self.around.lease_s
        while True:
            await asyncio.sleep(min(LOOK_S, self.around.lease_s / 3))
            try:
                if self.is_stopping():
                    await self._hand_back()
                await self._write()
                lost_at = self.clock() + self.around.lease_s
            except StoreUnavailable as error:
                _log.warning("batch_lease_not_renewed", batch_id=self.batch.id, error=str(error))
                if self.is_stopping() or self.clock() > lost_at:
                    raise FeederStopped("the store is away") from None

    async def _hand_back(self) -> None:
        if self._lines is not None:
            await self._lines.flush()
        await self._write(is_released=True)
        raise FeederStopped("the process ends")

    async def _move(self, to: BatchState, **fields: Any) -> BatchState:
        """To another state, if nobody cancelled meanwhile; the state then. Waits for a store that is away."""
        while True:
            try:
                await self._write(to=to, **fields)
                return self._state
            except StoreUnavailable:
                await asyncio.sleep(LOOK_S)

    async def _write(self, **fields: Any) -> None:
        num_in_flight = 0 if self._lines is None else self._lines.num_in_flight
        write = partial(
            self.around.batches.write,
            self.batch.id,
            self.epoch,
            counts=self._progress(),
            in_flight=(num_in_flight, self.around.window),
            **fields,
        )
        state = await to_thread.run_sync(write)
        if state is None:
            raise FeederStopped("another feeder has the batch")
        self._state = state

    def _progress(self) -> BatchCounts | None:
        """Never less than an earlier feeder has shown: what it did not write down is found again in a moment."""
        if self._lines is None:
            return None
        counts, shown = self._results.counts(len(self._lines.index)), self.batch.counts
        if self._lines.is_complete():
            return counts
        names = BatchCounts.__struct_fields__
        return BatchCounts(**{name: max(getattr(counts, name), getattr(shown, name)) for name in names})
