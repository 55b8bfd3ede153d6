"""The two clocks of a worker, injected so that tests own the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def _system_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """`now_ms` is compared with deadlines, so it should follow the store's clock; `monotonic_s` measures waiting."""

    now_ms: Callable[[], int] = _system_ms
    monotonic_s: Callable[[], float] = time.monotonic


class StoreTime:
    """The store's clock as last asked for, carried on by our monotonic one; the system's before the first answer.

    Hosts disagree about the time of day, but deadlines and everything that the controller compares are by the
    store's clock."""

    def __init__(self, ask_ms: Callable[[], int], monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._ask_ms = ask_ms
        self._monotonic_s = monotonic_s
        self._asked_at: tuple[int, float] | None = None  # (the store's ms, our monotonic s) at one moment

    def synchronise(self) -> None:
        """Ask again. Raises what asking raises; the old answer goes on then."""
        before_s = self._monotonic_s()
        store_ms = self._ask_ms()
        self._asked_at = store_ms, (before_s + self._monotonic_s()) / 2

    def now_ms(self) -> int:
        if self._asked_at is None:
            return _system_ms()
        store_ms, asked_s = self._asked_at
        return store_ms + int((self._monotonic_s() - asked_s) * 1000)
