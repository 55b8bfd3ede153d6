"""How busy a machine's cores are while requests arrive."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class CoreWatch:
    """Looks at the cores when it is entered, and again `span_s` later or at the end. Use as a context manager."""

    def __init__(self, span_s: float) -> None:
        self._timer = threading.Timer(span_s, self._look)
        self._lock = threading.Lock()
        self._share: float | None = None

    def __enter__(self) -> CoreWatch:
        self._began_s = _spent_s()
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._look()

    @property
    def busy_share(self) -> float:
        """Of all cores, by all processes of the machine. Only afterwards."""
        assert self._share is not None, "not over yet"
        return self._share

    def _look(self) -> None:
        with self._lock:
            if self._share is None:
                busy_s, all_s = (now - then for now, then in zip(_spent_s(), self._began_s, strict=True))
                self._share = busy_s / all_s if all_s else 0.0


def _spent_s() -> tuple[float, float]:
    """Busy, and in all; waiting for a disk is not busy."""
    times = psutil.cpu_times()
    all_s = sum(getattr(times, name) for name in times._fields if not name.startswith("guest"))
    return all_s - times.idle - getattr(times, "iowait", 0.0), all_s
