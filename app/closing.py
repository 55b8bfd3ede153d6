"""The end of a front: until when what is open may end by itself, before it is told that the front goes."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.errors import ServerShuttingDown

# Before the server cuts what is open: a silent stream looks every second, and a job may be cancelled.
LAST_WORDS_S = 2.0


class Closing:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_at: float | None = None

    def begin(self, grace_s: float) -> None:
        """The server stops, and cuts what is open after `grace_s`."""
        self._due_at = self._clock() + max(0.0, grace_s - LAST_WORDS_S)

    @property
    def is_due(self) -> bool:
        """Whether streams and waiting requests have to end now."""
        return self._due_at is not None and self._clock() >= self._due_at

    def check(self) -> None:
        """Raises ServerShuttingDown when they have to."""
        if self.is_due:
            raise ServerShuttingDown()
