"""All connections of a server: which are heard, which only linger, and the one timer that looks after them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import structlog

TICK_S = 0.5
RESERVE = 512  # connections beyond the limit that are heard, for health checks; a crowd may come at once
MAX_LINGERING = 256

_log = structlog.get_logger(__name__)


class Connection(Protocol):
    def check(self, now: float) -> None:
        """Called every tick."""
        ...


C = TypeVar("C", bound=Connection)


class Watch(Generic[C]):
    """All connections of a server, and the one timer that looks after them."""

    def __init__(self, on_refused: Callable[[str], None]) -> None:
        self._open: set[C] = set()
        self._heard: set[C] = set()  # those that don't just linger
        self._reserve: dict[C, None] = {}  # beyond the limit, and have not asked yet; oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._on_refused = on_refused
        self._refused: Counter[str] = Counter()

    @property
    def num_heard(self) -> int:
        return len(self._heard)

    def add(self, connection: C) -> None:
        self._open.add(connection)
        self._heard.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def discard(self, connection: C) -> None:
        self._open.discard(connection)
        self._heard.discard(connection)
        self._reserve.pop(connection, None)

    def reserve(self, connection: C) -> C | None:
        """Hear one more than the limit: it may be a health check. Returns the one that must go for it, the longest
        silent, so that silent ones never keep a health check out."""
        self._reserve[connection] = None
        return next(iter(self._reserve)) if len(self._reserve) > RESERVE else None

    def release(self, connection: C) -> None:
        """It has asked, and is served."""
        self._reserve.pop(connection, None)

    def let_linger(self, connection: C) -> bool:
        """Whether a refused one may stay for a moment."""
        self._heard.discard(connection)
        self._reserve.pop(connection, None)
        return len(self._open) - len(self._heard) <= MAX_LINGERING

    def refused(self, code: str) -> None:
        self._refused[code] += 1
        self._on_refused(code)

    def cut_off(self, code: str, **figures: object) -> None:
        self._on_refused(code)
        _log.warning(code, **figures)

    def _tick(self) -> None:
        now = time.monotonic()
        for connection in tuple(self._open):
            connection.check(now)
        if self._refused:  # one line per tick, however many there are
            _log.warning("connections_refused", open=len(self._open), **self._refused)
            self._refused.clear()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick) if self._open else None
