"""Where a runner's tokens go: the port between the warm pool and the token streams in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
