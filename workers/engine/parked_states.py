"""Caches of slots that were given to somebody else, kept in ordinary memory up to a bound of bytes. Pure.

An entry is found by the tokens that it holds. The one that was used longest ago goes first: bytes grow with tokens, so
per byte all entries save the same work, and only the chance of being asked for tells them apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from workers.engine.backend import State


@dataclass(frozen=True, slots=True, eq=False)
class ParkedState:
    tokens: list[int]
    state: State
    adapter: str = ""  # under which it was computed


class ParkedStates:
    def __init__(self, limit_bytes: int, *, cuts_tails: bool) -> None:
        """`cuts_tails`: as in `Backend`. Without it a state is of use for its very tokens only."""
        self.limit_bytes = limit_bytes
        self._cuts_tails = cuts_tails
        self.used_bytes = 0
        self._entries: OrderedDict[int, ParkedState] = OrderedDict()  # by identity, the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[ParkedState]:
        return iter(self._entries.values())

    def contains(self, held: list[int], tokens: list[int]) -> bool:
        """Whether a state of `held` can serve whoever wants a state of `tokens` under the same adapter."""
        if not self._cuts_tails:
            return held == tokens
        size = len(tokens)
        if size and (size > len(held) or held[size - 1] != tokens[size - 1]):
            return False  # seen at a glance, and there may be hundreds of states to ask this of
        return held[:size] == tokens

    def put(self, tokens: list[int], state: State, adapter: str = "") -> None:
        """Keep it, in place of all that it contains; the least recently used entries make room.

        `state` must not be larger than the limit."""
        for entry in [each for each in self if each.adapter == adapter and self.contains(tokens, each.tokens)]:
            self.drop(entry)
        while self.used_bytes + state.nbytes > self.limit_bytes:
            self.drop(next(iter(self)))
        entry = ParkedState(tokens, state, adapter)
        self._entries[id(entry)] = entry
        self.used_bytes += state.nbytes

    def touch(self, entry: ParkedState) -> None:
        """It was used just now."""
        self._entries.move_to_end(id(entry))

    def drop(self, entry: ParkedState) -> None:
        """It may be gone already."""
        if self._entries.pop(id(entry), None) is not None:
            self.used_bytes -= entry.state.nbytes
