"""One step at a time on a CPU's cores: the runners of a machine take turns instead of fighting for them.

The threads of a step meet at a barrier after every operation, where they spin. When the runners of several models
decode at once on the same cores, every barrier waits for a thread that has no core, and all of them come to a crawl.
So a step first takes as many cores as it has threads; they are bytes of a file, taken by record locks, which the kernel
gives back when a process dies.

1. A queue byte is taken first and kept until the cores are there: a step that needs all of them is not starved by
   others that need one.
2. Who waits longer than PATIENCE_S goes on without, and does not ask again for a while: one runner that hangs must not
   stop the others, and would be ended as stalled.

Linux and macOS; the waits end by a signal, so only the main thread may use it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType, TracebackType

from workers.cores import usable_cores
from workers.engine.base import EngineConfig

PATIENCE_S = 3.0  # the longest step takes about one
PAUSE_S = 30.0  # without turns, after one was waited for in vain
_QUEUE_BYTE = 0
_FIRST_CORE_BYTE = 1


class _TooLong(Exception):
    """The turn did not come in time."""


class Turnstile:
    """Use as a context manager around whatever computes. `cores` are the machine's, `threads` those of this runner."""

    def __init__(
        self, path: Path, *, cores: int, threads: int, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises OSError when the file can't be made."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._num_cores = min(threads, cores)
        self._first = _FIRST_CORE_BYTE + (os.getpid() % cores if self._num_cores == 1 else 0)
        self._monotonic_s = monotonic_s
        self._resume_at_s = 0.0
        self._depth = 0  # how often the cores were taken and not let go; who has them may take them again
        signal.signal(signal.SIGALRM, _give_up)

    def __enter__(self) -> None:
        if self._depth:
            self._depth += 1
            return
        if self._monotonic_s() < self._resume_at_s:
            return
        if self._take(fcntl.LOCK_NB):
            return
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        try:
            self._take(0)
        except _TooLong:
            self._let_go()
            self._resume_at_s = self._monotonic_s() + PAUSE_S
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._depth > 1:
            self._depth -= 1
        elif self._depth:
            self._let_go()

    def close(self) -> None:
        os.close(self._file)

    def _take(self, flags: int) -> bool:
        """False when others hold or await the cores and `flags` say not to wait."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | flags, 1, _QUEUE_BYTE)
            fcntl.lockf(self._file, fcntl.LOCK_EX | flags, self._num_cores, self._first)
        except BlockingIOError:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _QUEUE_BYTE)
            return False
        self._depth = 1
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _QUEUE_BYTE)
        return True

    def _let_go(self) -> None:
        self._depth = 0
        fcntl.lockf(self._file, fcntl.LOCK_UN, 0, 0)


def turnstile_for(config: EngineConfig) -> AbstractContextManager[None]:
    """The turnstile of this engine; one that lets everybody through where the cores are not what it computes on."""
    if config.turns_path is None or config.gpu_layers != 0:
        return nullcontext()
    return Turnstile(config.turns_path, cores=usable_cores(), threads=config.threads)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise _TooLong
