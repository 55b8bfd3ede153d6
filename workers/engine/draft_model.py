"""What a small model says comes next: its cache follows the sequences of the large one, slot by slot.

It holds what it holds: nobody tells it of parking, resuming, forks or drafts that were wrong. Whenever it is asked, it
compares what a slot of its own holds with the sequence that runs there now, keeps the common start, or copies a longer
one from another slot, and computes the rest in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from contextlib import AbstractContextManager

import numpy as np

from workers.engine.backend import Backend, NoRoom, Slice
from workers.engine.base import DRAFT_PIECE, EngineFailed
from workers.engine.sampling import Floats
from workers.engine.scheduler import common_prefix
from workers.engine.sequence import Sequence

NEAR = 8  # tokens; who is behind by no more than these is caught up by the first decode of a draft
WORTH_COPYING = 16  # tokens


class DraftModel:
    """Every method may raise EngineFailed: then the draft model can't go on, and the large one can."""

    def __init__(
        self,
        backend: Backend,
        *,
        slots: int,
        context_length: int,
        vocabulary_size: int,
        large_vocabulary_size: int,
        turn: AbstractContextManager[int],
    ) -> None:
        """`turn` is held while a draft is made: its decodes are one step to others on the same cores."""
        self._backend = backend
        self._context_length = context_length
        self._vocabulary_size = vocabulary_size
        self._large_vocabulary_size = large_vocabulary_size
        self._turn = turn
        self._held: list[list[int]] = [[] for _ in range(slots)]  # the tokens in each slot's cache
        self._owners: list[Sequence | None] = [None] * slots  # whose tokens they were when it was asked last

    def room(self, sequence: Sequence) -> int:
        """How many tokens it can guess before its context ends."""
        return self._context_length - len(sequence.tokens)

    def behind(self, sequence: Sequence) -> int | None:
        """How many tokens it has to compute before it can guess; None when it doesn't know them all, or has no room."""
        if self.room(sequence) < 1:
            return None
        held = self._follow(sequence)
        missing = sequence.tokens[held:]
        return len(missing) if max(missing) < self._vocabulary_size else None

    def catch_up(self, sequence: Sequence, limit: int) -> int:
        """Compute some of what is missing, but for the last token; how many tokens that were."""
        held = self._follow(sequence)
        piece = sequence.tokens[held : min(held + min(limit, DRAFT_PIECE), len(sequence.tokens) - 1)]
        self._decode([Slice(sequence.slot, held, piece, 0)])
        return len(piece)

    def propose(self, sequences: Items[Sequence], lengths: Items[int]) -> int:
        """Give each sequence a draft of its length, 0 for none; how many decodes that took. The sequences are in the
        order of their slots, and behind by NEAR at most."""
        drafting = [(each, length) for each, length in zip(sequences, lengths, strict=True) if length]
        pieces = {each.slot: each.tokens[self._follow(each) :] for each, _ in drafting}
        with self._turn:
            for position in range(max(lengths)):
                going = [each for each, length in drafting if length > position]
                rows = self._decode(
                    [Slice(each.slot, len(self._held[each.slot]), pieces[each.slot], 1) for each in going]
                )
                for each, likeliest, row in zip(going, rows.argmax(axis=1).tolist(), rows, strict=True):
                    token = each.guess_next(likeliest, row)
                    each.draft.append(token)
                    pieces[each.slot] = [token]
        return max(lengths)

    def _follow(self, sequence: Sequence) -> int:
        """Let the sequence's slot hold as much of it as is to be had, but not its last token; the number of tokens."""
        slot, tokens = sequence.slot, sequence.tokens
        held = self._held[slot]
        last = len(tokens) - 1
        if self._owners[slot] is sequence:  # only a draft's tokens can be wrong
            start = max(0, len(held) - DRAFT_PIECE)
            length = min(start + common_prefix(held[start:], tokens[start:last]), last)
        else:
            self._owners[slot] = sequence
            length = min(common_prefix(held, tokens), last)
            length = self._copied(slot, tokens, length)
        if length < len(self._held[slot]):
            del self._held[slot][self._backend.keep_prefix(slot, length) :]
        return len(self._held[slot])

    def _copied(self, slot: int, tokens: list[int], length: int) -> int:
        """The length of the prefix in the slot, after a longer one was copied from where it lies."""
        lengths = [min(common_prefix(held, tokens), len(tokens) - 1) for held in self._held]
        source = lengths.index(max(lengths))
        if lengths[source] < length + WORTH_COPYING:
            return length
        self._backend.copy(source, slot)
        self._held[slot] = self._held[source].copy()
        return lengths[source]

    def _decode(self, batch: list[Slice]) -> Floats:
        try:
            rows = self._backend.decode(batch)
        except NoRoom:
            raise EngineFailed("its cache has no room") from None
        for part in batch:
            self._held[part.slot] += part.tokens
        if math.isnan(rows[:, :1].sum()):
            raise EngineFailed("it produced NaN")
        if rows.shape[1] < self._large_vocabulary_size:  # the last tokens are unknown to it
            unknown = self._large_vocabulary_size - rows.shape[1]
            return np.pad(rows, ((0, 0), (0, unknown)), constant_values=-np.inf)
        return rows[:, : self._large_vocabulary_size]
