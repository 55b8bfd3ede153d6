"""Where a runner's tokens go: the port between the warm pool and the token streams in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tasks.ports import Attempt
from tasks.stream_events import Tokens


class Verdict(StrEnum):
    """What the store said about one chunk."""

    OK = "ok"
    CANCEL = "cancel"  # appended, but the client wants the end
    LOST = "lost"  # not appended: a higher attempt owns the job


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """All new tokens of one sequence since its previous chunk."""

    attempt: Attempt
    seq: int  # number of this event in the job's token stream; the previous chunk had seq - 1
    event: Tokens


class TokenSink(Protocol):
    def append(self, chunks: Sequence[Chunk]) -> Sequence[Verdict]:
        """Append one chunk per sequence and return their verdicts in the same order. Called from many threads.

        After StoreUnavailable the very same chunks come again, so an append whose answer was lost must be recognised
        by its attempt and seq and answered OK.
        """
        ...
