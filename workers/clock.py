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
