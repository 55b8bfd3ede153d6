"""The sequences that have no slot: urgent ones first, then in order of their arrival. Pure.

A sequence that was parked keeps its arrival, so it comes back before younger ones of its priority.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from workers.engine.sequence import Sequence


class WaitingLine:
    def __init__(self) -> None:
        self._line: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Sequence]:
        """In order; sequences may leave while it goes on."""
        return iter(tuple(self._line))

    def enter(self, sequence: Sequence) -> None:
        insort(self._line, sequence, key=Sequence.rank)

    def leave(self, sequence: Sequence) -> None:
        self._line.remove(sequence)

    def find(self, key: int) -> Sequence | None:
        return next((sequence for sequence in self._line if sequence.key == key), None)
