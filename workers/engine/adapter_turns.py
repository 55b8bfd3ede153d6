"""Which LoRA adapter the next batch is computed with, while sequences of several run. Pure.

A batch has one adapter, and setting another one costs several steps of a small model (llama.cpp lays out its graphs and
buffers anew: 0.7 ms of CPU time with 42 M parameters, 2.6 with 1 B). So those who run under one adapter go on for a gap
that nobody notices, or for one longer step, and then it is the turn of the adapter that has waited longest.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

TURN_S = 0.03
TURN_STEPS = 16  # and no more than these, however quick they are


class AdapterTurns:
    def __init__(self) -> None:
        self._current: str | None = None
        self._since_s = 0.0
        self._steps = 0  # in this turn
        self._number = 0  # of this turn
        self._served: dict[str, int] = {}  # adapter → its last turn, or the one in which it came

    def choose(self, adapters: AbstractSet[str], now_s: float) -> str:
        """One of these, for one step; `now_s` is monotonic."""
        if adapters != self._served.keys():  # who comes anew goes behind those who wait: else these might for ever
            self._served = {each: self._served.get(each, self._number) for each in adapters}
        is_over = self._steps >= TURN_STEPS or now_s - self._since_s >= TURN_S
        if self._current is None or self._current not in adapters or (is_over and len(adapters) > 1):
            others = [each for each in adapters if each != self._current]
            self._current = min(others, key=lambda each: (self._served[each], each))
            self._since_s, self._steps, self._number = now_s, 0, self._number + 1
            self._served[self._current] = self._number
        self._steps += 1
        return self._current
