"""Prompt lookup: what comes next is guessed to be what came next when the same tokens stood here before. Pure.

The method is Saxena's (2023, "Prompt Lookup Decoding"): text that is quoted, corrected or continued in a fixed form
repeats long pieces of the prompt and of itself. A guess costs about a microsecond, and whether it was right is seen
for free when the token comes, drafted or not.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

LOOK_BACK = 4096  # tokens that are indexed at least, and twice as many at most
_NEWEST = 1 / 8  # weight of the newest token in the chances


class Guess(NamedTuple):
    """Tokens that may come next, and how likely they are."""

    length: int  # as many as are wanted: a repetition may go on for ever
    first: float  # chance that the first one is right
    others: float  # chance of each later one, where those before it are right

    def expected(self, length: int) -> float:
        """How many of the first `length` tokens will be right, on average."""
        length = min(length, self.length)
        return self.first * (1 - self.others**length) / (1 - self.others)


class PromptLookup:
    """Follows one growing list of tokens."""

    __slots__ = ("_fresh", "_going", "_hits", "_pairs", "_seen", "_source", "_tokens", "_triples")

    def __init__(self, tokens: list[int]) -> None:
        """`tokens` is kept, and read again at each call."""
        self._tokens = tokens
        self._seen = 0
        self._pairs: dict[tuple[int, ...], int] = {}  # the last two tokens → where the one behind them stood
        self._triples: dict[tuple[int, ...], int] = {}
        self._source = 0  # position of the token that is guessed to come next; 0: no guess
        self._hits = 0  # of this source, in a row
        # How often guesses are right: the first of a source, and those that follow a right one.
        self._fresh = 0.5
        self._going = 0.75

    def guess(self, limit: int) -> Guess | None:
        """What is known of the next tokens, `limit` at most."""
        self._catch_up()
        if not self._source or limit < 1:
            return None
        others = self._going
        return Guess(limit, others if self._hits else self._fresh, others)

    def draft(self, length: int) -> list[int]:
        """The tokens of the last guess. Where the source reaches the present, the repetition repeats itself."""
        period = len(self._tokens) - self._source
        return [self._tokens[self._source + offset % period] for offset in range(length)]

    def _catch_up(self) -> None:
        tokens = self._tokens
        if len(tokens) - self._seen > LOOK_BACK or not self._seen or len(self._pairs) >= 2 * LOOK_BACK:
            self._index_anew()
        for at in range(max(self._seen, 1), len(tokens)):
            if self._source:
                self._compare(tokens[at])
            pair = (tokens[at - 1], tokens[at])
            triple = tuple(tokens[max(at - 2, 0) : at + 1])
            if not self._source:
                self._source = self._triples.get(triple) or self._pairs.get(pair, 0)
            self._triples[triple] = self._pairs[pair] = at + 1
        self._seen = len(tokens)

    def _compare(self, token: int) -> None:
        is_hit = self._tokens[self._source] == token
        if self._hits:
            self._going = min(self._going + (is_hit - self._going) * _NEWEST, 0.99)
        else:
            self._fresh += (is_hit - self._fresh) * _NEWEST
        self._source = self._source + 1 if is_hit else 0
        self._hits = self._hits + 1 if is_hit else 0

    def _index_anew(self) -> None:
        """All but the last token, at the speed of C: a prompt may have thousands."""
        end = max(len(self._tokens) - 1, 0)
        start = max(0, end - LOOK_BACK)
        tokens = self._tokens[start:end]
        self._pairs = dict(zip(pairwise(tokens), range(start + 2, end + 1), strict=False))
        triples = zip(tokens, tokens[1:], tokens[2:], strict=False)
        self._triples = dict(zip(triples, range(start + 3, end + 1), strict=False))
        if self._seen < end:
            self._seen, self._source, self._hits = end, 0, 0
