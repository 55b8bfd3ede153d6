"""How many threads a step is best computed with, by what steps took. Pure: numbers in, numbers out.

The threads of a step spin at a barrier after every operation. Where another program computes on one of their cores,
each barrier waits for the thread that has none right now: beside one busy program a step of two threads on two cores
took three to four times as long as one of a single thread. So where steps have become slow, one with fewer threads is
tried, and kept where it is quicker; one with a thread more is tried again and again, ever more rarely while it is not.
"""

from __future__ import annotations

from collections.abc import Callable

SMALL_STEP = 32  # tokens; steps of up to so many are timed: there are many alike, and a trial costs next to nothing
SLOW = 1.25  # times what a step took at its best
SLOW_STEPS = 3  # in a row before a trial: one may have met anything
LESS_IS_WORTH, MORE_IS_WORTH = 0.8, 0.97  # of the time, before a number of threads is changed
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 4.0  # between two trials of the same kind; a vain one doubles it
FORGOTTEN_S = 5.0  # without a small step nobody knows how things are
RELAXING = 0.02  # of the way to what a step takes now, per step: contexts grow


class ThreadPace:
    """For the steps of one context. Steps are told by their number of tokens: those with as many take as long."""

    def __init__(self, most: int, monotonic_s: Callable[[], float]) -> None:
        self._most = most
        self._monotonic_s = monotonic_s
        self._level = most
        self._seconds: dict[tuple[int, int], float] = {}  # (tokens, threads) → average, the newest counts half
        self._best_s: dict[int, float] = {}  # tokens → at the best number of threads
        self._slow_steps = 0
        self._fewer = 1  # threads less in the next trial of that kind
        self._next_trial_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._measured_at_s = 0.0

    def threads(self, tokens: int, granted: int) -> int:
        """For the next step, of at most so many that are granted."""
        now_s = self._monotonic_s()
        level = min(self._level, granted)
        if now_s - self._measured_at_s > FORGOTTEN_S:
            self._level, self._slow_steps, self._fewer, self._pause_s = self._most, 0, 1, FIRST_PAUSE_S
            return granted
        if tokens > SMALL_STEP or now_s < self._next_trial_s or (tokens, level) not in self._seconds:
            return level
        if level < granted:
            return level + 1
        return max(1, level - self._fewer) if self._slow_steps >= SLOW_STEPS else level

    def measured(self, tokens: int, threads: int, granted: int, seconds: float) -> None:
        """A step was computed, with as many threads as `threads` said."""
        if tokens > SMALL_STEP or granted == 1:
            return
        self._measured_at_s = now_s = self._monotonic_s()
        level = min(self._level, granted)
        best_s = self._best_s.get(tokens, seconds)
        self._best_s[tokens] = seconds if seconds < best_s else best_s + RELAXING * (seconds - best_s)
        if threads == level:
            known_s = self._seconds.get((tokens, threads), seconds)
            self._seconds[tokens, threads] = (known_s + seconds) / 2
            self._slow_steps = self._slow_steps + 1 if seconds > SLOW * best_s else 0
            return
        if seconds < (MORE_IS_WORTH if threads > level else LESS_IS_WORTH) * self._seconds[tokens, level]:
            self._level, self._fewer = threads, 1
            self._seconds[tokens, threads] = seconds
            self._pause_s = FIRST_PAUSE_S
        else:
            self._fewer = 2 * self._fewer if threads < level else 1
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
        self._slow_steps = 0
        self._next_trial_s = now_s + self._pause_s
