"""Work that nobody waits for: when it may begin, and how it keeps out of the way of work that somebody waits for."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import psutil

LOOK_S = 0.25
QUIET_S = 1.0  # so long nothing must have run: between two requests of a busy stream nothing begins
IDLE_NICE = 19


class QuietWait:
    """Whether the time has come for work that nobody waits for; looked at again and again by one thread."""

    def __init__(
        self,
        is_busy: Callable[[], bool],
        *,
        quiet_s: float = QUIET_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_busy = is_busy
        self._quiet_s = quiet_s
        self._monotonic_s = monotonic_s
        self._quiet_since_s: float | None = None
        self._looked_at_s = monotonic_s()

    def is_over(self) -> bool:
        """Nothing has run for `quiet_s`, as far as looks can tell; after a long time without a look it begins anew."""
        now_s = self._monotonic_s()
        is_gap = now_s - self._looked_at_s > QUIET_S  # nobody knows what ran meanwhile
        self._looked_at_s = now_s
        if self._is_busy():
            self._quiet_since_s = None
            return False
        if self._quiet_since_s is None or is_gap:
            self._quiet_since_s = now_s
        return now_s - self._quiet_since_s >= self._quiet_s


def give_way(pid: int) -> None:
    """Let the process run only when a core has nothing else to do, as far as the system allows."""
    with contextlib.suppress(OSError):
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process(pid).nice(IDLE_NICE)
