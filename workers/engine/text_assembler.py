"""The text of a growing generation, as far as later tokens can't take it back. Pure.

Bytes wait until their character is complete, and characters wait while they may be the start of a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence as Items


class TextAssembler:
    """Turns pieces into text that may be shown: whole characters, cut before the first stop string."""

    __slots__ = ("_decoder", "_has_part", "_stops", "held", "stopped")

    def __init__(self, stops: Items[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._has_part = False  # the decoder holds the first bytes of a character
        self.held = ""  # whole characters that may be the start of a stop string
        self.stopped = False

    def push(self, piece: bytes, whole_text: str | None = None) -> str:
        """The text that became certain with this piece. Sets `stopped` when a stop string is complete.

        `whole_text`: the piece as text, where it is whole characters; it saves the decoding."""
        if whole_text is None or self._has_part:
            text = self._decoder.decode(piece)
            self._has_part = bool(self._decoder.getstate()[0])
        else:
            text = whole_text
        if not self._stops or not text:
            return text
        return self._release(self.held + text)

    def flush(self) -> str:
        """All that was held back, at the end of a generation; an incomplete character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self.held + self._decoder.decode(b"", True)
        self.held = ""
        return text

    def _release(self, text: str) -> str:
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        certain = len(text) - max(possible_overlap(text, stop) for stop in self._stops)
        self.held = text[certain:]
        return text[:certain]


def possible_overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
