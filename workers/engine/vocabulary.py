"""What the step loop needs to know about a model's tokens. Each backend builds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

from tasks.generation import TokenLogprob


class LazyPieces(Sequence[bytes]):
    """The bytes of each id, read when they are asked for: a large vocabulary would take a third of a second of every
    load, and most of its tokens never come. Safe in any thread if `read` is."""

    def __init__(self, size: int, read: Callable[[int], bytes]) -> None:
        self._ids = range(size)
        self._read = read

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, token: int) -> bytes: ...

    @overload
    def __getitem__(self, token: slice) -> tuple[bytes, ...]: ...

    def __getitem__(self, token: int | slice) -> bytes | tuple[bytes, ...]:
        if isinstance(token, slice):
            return tuple(map(self._read, self._ids[token]))
        return self._read(self._ids[token])


class TokenTexts(dict[int, tuple[bytes, str | None]]):
    """The piece of an id, and its text if that is whole characters (None for parts of characters)."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def __missing__(self, token: int) -> tuple[bytes, str | None]:
        piece = self._pieces[token]
        found = self[token] = (piece, _whole_text(piece))
        return found


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Token id → bytes, and the ids that end a text."""

    pieces: Sequence[bytes]  # UTF-8 fragment of each id; empty for control tokens, which never become text
    eog_ids: frozenset[int]  # every one of them ends a generation
    bos_text: str = ""
    eos_text: str = ""

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def texts(self) -> TokenTexts:
        """By id; what was looked at once is kept."""
        return TokenTexts(self.pieces)

    def logprob(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        """One token on its own, as lists of log probabilities have it; parts of characters become U+FFFD."""
        piece, _ = self.texts[token]
        text = piece.decode("utf-8", "replace")
        return TokenLogprob(text, logprob, top, None if text.encode() == piece else piece)


def _whole_text(piece: bytes) -> str | None:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None
