"""Whether a runner is stalled, and why it died. Decides only; kills nothing, and knows neither the process nor its
flights. No lock: the reader thread alone tells it of signs and asks it; any thread may read `progress`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from tasks.errors import (
    KeepwarmError,
    ModelLoadBroken,
    RunnerCrashed,
    RunnerOutOfMemory,
    RunnerStalled,
)


class Watchdog:
    """Watches from its construction on, which should be before the process can die.

    `stall_s`, `load_stall_s`: as in `workers.runner.RunnerLimits`. `oom_kills`: the kernel's counter of such kills."""

    def __init__(
        self,
        *,
        model: str,
        stall_s: float,
        load_stall_s: float,
        monotonic_s: Callable[[], float],
        oom_kills: Callable[[], int],
    ) -> None:
        self._model = model
        self._stall_s = stall_s
        self._load_stall_s = load_stall_s
        self._monotonic_s = monotonic_s
        self._oom_kills = oom_kills
        self._oom_kills_before = oom_kills()
        self._last_sign_s = monotonic_s()
        self._progress = 0.0

    @property
    def progress(self) -> float:
        """Of the load, from 0 to 1; never goes back."""
        return self._progress

    def note_progress(self, fraction: float) -> None:
        self._progress = max(self._progress, min(fraction, 1.0))

    def note_sign(self) -> None:
        """Something has come from the runner."""
        self._last_sign_s = self._monotonic_s()

    def find_stall(self, *, is_loaded: bool, busy_since_s: float | None) -> KeepwarmError | None:
        """Why it must be killed, or None. `busy_since_s`: since when it has had work, None without any; silence before
        that is no stall."""
        now_s = self._monotonic_s()
        silent_s = now_s - self._last_sign_s
        if not is_loaded:
            if silent_s <= self._load_stall_s:
                return None
            return ModelLoadBroken(f"no progress for {silent_s:.0f} s at {self._progress:.0%}")
        if busy_since_s is None:
            return None
        silent_s = min(silent_s, now_s - busy_since_s)
        return RunnerStalled(self._model, silent_s) if silent_s > self._stall_s else None

    def cause_of_death(self, exit_code: int | None, *, is_loaded: bool, last_words: str = "") -> KeepwarmError:
        """Why it died when nobody wanted it to. `exit_code`: negative for a signal, None when it did not even die;
        `last_words`: what it said of it itself."""
        if exit_code == -signal.SIGKILL and self._oom_kills() > self._oom_kills_before:
            return RunnerOutOfMemory(self._model)
        if is_loaded:
            return RunnerCrashed(self._model, exit_code, last_words)
        return ModelLoadBroken(f"its runner died (exit code {exit_code})")
