"""Batches: their states, who may move them where, and the record that clients see. Pure: no store, no clock.

A batch is a file of requests that are answered one by one whenever there is room. Every line of the file ends up
exactly once in the output file or in the error file.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

MAX_LINES = 50_000
WINDOW_MS = 24 * 3600 * 1000  # the only completion window that OpenAI knows, too
MAX_BREAKS = 5  # feeders that break one after the other without any progress; then the batch has failed
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")  # as far as the front has them


class BatchState(StrEnum):
    """Where a batch stands, in OpenAI's words. Terminal states are written once and never change."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not NEXT[self]


# Who moves it: its feeder, but for `cancelling`, which the front writes. Failed means that the input can't be used:
# a malformed line, no line, a file that is gone, or one that no feeder gets through. A finalizing batch expires when
# the results that it had are lost.
NEXT: dict[BatchState, frozenset[BatchState]] = {
    BatchState.VALIDATING: frozenset({BatchState.IN_PROGRESS, BatchState.FAILED, BatchState.CANCELLING}),
    BatchState.IN_PROGRESS: frozenset(
        {BatchState.FINALIZING, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLING}
    ),
    BatchState.FINALIZING: frozenset({BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED}),
    BatchState.CANCELLING: frozenset({BatchState.CANCELLED, BatchState.FAILED}),
    BatchState.COMPLETED: frozenset(),
    BatchState.FAILED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}


def states_before(state: BatchState) -> tuple[BatchState, ...]:
    """From where a batch may get into this state."""
    return tuple(before for before, after in NEXT.items() if state in after)


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """Why an input file can't be used; `line` counts from 1 and is None when the whole file is meant."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Lines, and the tokens of those that have been answered."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFigures:
    """What metrics say about all batches."""

    open: Mapping[str, int] = field(default_factory=dict)  # by state
    ended: Mapping[str, int] = field(default_factory=dict)  # by state, since the store exists
    lines: Mapping[str, int] = field(default_factory=dict)  # of open batches: completed, failed, in_flight, waiting
    window: int = 0  # lines that feeders may have in flight, of all open batches together
    oldest_age_s: float = 0.0  # of an open batch


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the record in the store. Times are integer milliseconds of the store's clock."""

    id: str
    state: BatchState
    endpoint: str
    input_file_id: str
    created_ms: int
    expires_ms: int
    metadata: dict[str, str] | None = None
    model: str | None = None  # None while unknown, and when the lines name several
    counts: BatchCounts = BatchCounts()
    errors: tuple[LineError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    breaks: int = 0  # feeders that ended by an exception, since there was progress
    broke_by: str = ""  # the last of them: what kind of exception
    entered_ms: dict[BatchState, int] = {}  # when it came into each state that it has been in


def new_batch_id() -> str:
    """`batch_` and 120 random bits, so that an id can't be guessed."""
    return "batch_" + secrets.token_hex(15)


def line_key(batch_id: str, line: int) -> str:
    """Idempotency key of a line's job: whoever feeds the line again finds the job that it had before."""
    return f"{batch_id}/{line}"


def line_id(batch_id: str, line: int) -> str:
    """Id of a line in the output, the same on every attempt."""
    return "batch_req_" + hashlib.sha256(line_key(batch_id, line).encode()).hexdigest()[:24]
