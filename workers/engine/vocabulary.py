"""What the step loop needs to know about a model's tokens. Pure data; each backend builds one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tasks.generation import TokenLogprob


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Token id → bytes, and the ids that end a text."""

    pieces: tuple[bytes, ...]  # UTF-8 fragment of each id; empty for control tokens, which never become text
    eog_ids: frozenset[int]  # every one of them ends a generation
    bos_text: str = ""
    eos_text: str = ""

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def whole_texts(self) -> tuple[str | None, ...]:
        """The text of each id whose piece is whole characters; None for parts of characters."""
        return tuple(_whole_text(piece) for piece in self.pieces)

    def logprob(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        """One token on its own, as lists of log probabilities have it; parts of characters become U+FFFD."""
        piece = self.pieces[token]
        text = piece.decode("utf-8", "replace")
        return TokenLogprob(text, logprob, top, None if text.encode() == piece else piece)


def _whole_text(piece: bytes) -> str | None:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None
