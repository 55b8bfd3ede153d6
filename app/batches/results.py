"""What became of the lines of an open batch, kept so that a feeder that dies costs no finished line.

Results are collected in memory and written as numbered segments next to the files. A segment appears whole or not at
all; together the segments say which lines are done. A result that is lost with its feeder is still in its job, which
the next feeder finds again by the line's key. The names carry the feeder's epoch: one that lost its batch may write
another segment unawares, and nobody reads that.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from app.batches.contents import Contents, content_path
from tasks.batches import BatchCounts

_decode = msgspec.json.Decoder


class LineResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome of one line; `entry` is its line of the output file, or of the error file when not `is_ok`."""

    line: int
    is_ok: bool
    entry: msgspec.Raw
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class Results:
    """Results are added and taken on one thread; the methods that touch files may run on another."""

    def __init__(self, contents: Contents, batch_id: str, epoch: int) -> None:
        self._contents = contents
        self._folder = f"batches/{batch_id}"
        self._epoch = epoch
        self._segments: list[str] = []
        self._pending: list[LineResult] = []
        self._done: set[int] = set()
        self._counts = BatchCounts()

    def load(self) -> None:
        """Take over what earlier feeders wrote. Reads files."""
        for name in self._contents.names(self._folder):
            self._segments.append(name)
            for result in self._read(name):
                self._count(result)

    def add(self, result: LineResult) -> None:
        if self._count(result):
            self._pending.append(result)

    def is_done(self, line: int) -> bool:
        return line in self._done

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def counts(self, total: int) -> BatchCounts:
        return msgspec.structs.replace(self._counts, total=total)

    def take_pending(self) -> list[LineResult]:
        """What is not written yet; whoever takes it writes it, or puts it back."""
        pending, self._pending = self._pending, []
        return pending

    def put_back(self, pending: list[LineResult]) -> None:
        self._pending = pending + self._pending

    def write_segment(self, pending: list[LineResult]) -> None:
        """Keep these for the next feeder, should there be one. Writes a file, one at a time."""
        name = f"{self._epoch:08}-{len(self._segments):08}.jsonl"
        with self._contents.writing(f"{self._folder}/{name}") as sink:
            for result in pending:
                sink.write(msgspec.json.encode(result) + b"\n")
        self._segments.append(name)

    def write_file(self, file_id: str, *, is_ok: bool) -> int:
        """Put the output or the error file together from the segments; its size, 0 when no line belongs there."""
        num_bytes = 0
        written: set[int] = set()
        with self._contents.writing(content_path(file_id)) as sink:
            for name in self._segments:
                for result in self._read(name):
                    if result.line in written:
                        continue
                    written.add(result.line)
                    if result.is_ok is is_ok:
                        num_bytes += sink.write(bytes(result.entry) + b"\n")
        if not num_bytes:
            self._contents.delete(content_path(file_id))
        return num_bytes

    def delete(self) -> None:
        self._contents.delete(self._folder)

    def _read(self, name: str) -> Iterator[LineResult]:
        decode = _decode(LineResult).decode
        with self._contents.reading(f"{self._folder}/{name}") as source:
            for raw in source:
                yield decode(raw)

    def _count(self, result: LineResult) -> bool:
        """False for a line that is already done."""
        if result.line in self._done:
            return False
        self._done.add(result.line)
        counts = self._counts
        self._counts = BatchCounts(
            completed=counts.completed + result.is_ok,
            failed=counts.failed + (not result.is_ok),
            input_tokens=counts.input_tokens + result.input_tokens,
            cached_tokens=counts.cached_tokens + result.cached_tokens,
            output_tokens=counts.output_tokens + result.output_tokens,
        )
        return True
