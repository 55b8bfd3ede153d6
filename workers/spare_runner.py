"""One runner process that has started already and waits to be told its model: a load need not wait for an interpreter.

Starting Python and importing the engine takes longer than mapping a small model. The spare is a process like any
other runner; a load takes it, and the next one is started when that load is over and its first answer has begun, so
that it takes no time from them.
"""

from __future__ import annotations

import contextlib
import threading

import structlog

from workers.runner_launch import Child, EngineKind, RunnerConfig, discard, spawn, spawn_with, told

log = structlog.get_logger(__name__)


class SpareRunner:
    """A `RunnerSource`. With `keeps` False there is never a spare, and every start waits for its process."""

    def __init__(self, kind: EngineKind, *, keeps: bool) -> None:
        self._kind = kind
        self._keeps = keeps
        self._lock = threading.Lock()
        self._spare: Child | None = None
        self._is_closed = False

    def start(self, config: RunnerConfig) -> Child:
        """A process that loads this model: the spare one if it is there and alive. Raises OSError."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            with contextlib.suppress(OSError):  # it has died meanwhile
                return told(spare, config)
        return spawn_with(config)

    def replenish(self) -> None:
        """Start the next spare, if there is none."""
        with self._lock:
            if not self._keeps or self._is_closed or self._spare is not None:
                return
            try:
                self._spare = spawn(self._kind)
            except OSError as error:  # the next load starts its own
                log.warning("no_spare_runner", reason=str(error))

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            spare, self._spare = self._spare, None
        if spare is not None:
            discard(spare)
