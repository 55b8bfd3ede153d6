"""Where a runner's tokens go: the port between the warm pool and the token streams in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tasks.failpoints import failpoint
from tasks.store.token_writer import Chunk
from tasks.store.verdict import Verdict


class TokenSink(Protocol):
    """What a runner needs of `tasks.store.token_writer.TokenWriter`."""

    def append(self, chunks: Sequence[Chunk]) -> Sequence[Verdict]:
        """Append at most one chunk per job and return their verdicts in the same order. Called from many threads.

        After StoreUnavailable the very same chunks come again, so an append whose answer was lost must be recognised
        by its attempt and seq and answered OK.
        """
        ...


@dataclass(frozen=True, slots=True)
class FailingSink:
    """A sink around which the process can be killed; used only when a failpoint is armed."""

    sink: TokenSink

    def append(self, chunks: Sequence[Chunk]) -> Sequence[Verdict]:
        is_first = any(chunk.seq == 1 for chunk in chunks)
        failpoint("before_first_append" if is_first else "between_appends")
        verdicts = self.sink.append(chunks)
        if is_first:
            failpoint("after_first_append")
        return verdicts
