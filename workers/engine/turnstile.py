"""One step at a time on a CPU's cores: the runners of a machine take turns instead of fighting for them.

The threads of a step meet at a barrier after every operation, where they spin. When the runners of several models
decode at once on the same cores, every barrier waits for a thread that has no core, and all of them come to a crawl.
So a step first takes as many cores as it has threads; they are bytes of a file, taken by record locks, which the kernel
gives back when a process dies.

1. A queue byte is taken first and kept until the cores are there: a step that needs all of them is not starved by
   others that need one.
2. Who waits longer than PATIENCE_S goes on without, and does not ask again for a while: one runner that hangs must not
   stop the others, and would be ended as stalled.
3. Beside a load, which computes for a second or more with a thread of its own, a step leaves it a core: with as many
   threads as cores each barrier would wait for the one that shares a core with the load (on two cores a step of two
   threads took four times as long as one of one thread).

Linux and macOS; the waits end by a signal, so only the main thread may use it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType, TracebackType

from workers.cores import usable_cores
from workers.engine.base import EngineConfig

PATIENCE_S = 3.0  # the longest step takes about one
PAUSE_S = 30.0  # without turns, after one was waited for in vain
_QUEUE_BYTE = 0
_FIRST_CORE_BYTE = 1
_FIRST_LOAD_BYTE, _LOAD_BYTES = 4096, 64  # beyond all cores; a load takes one of them, by its pid


class _TooLong(Exception):
    """The turn did not come in time."""


class Turnstile:
    """Use as a context manager around whatever computes; it says with how many threads. `cores` are the machine's,
    `threads` the most of this runner."""

    def __init__(
        self, path: Path, *, cores: int, threads: int, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises OSError when the file can't be made."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._cores = cores
        self._threads = threads
        self._granted = threads
        self._monotonic_s = monotonic_s
        self._resume_at_s = 0.0
        self._depth = 0  # how often the cores were taken and not let go; who has them may take them again
        signal.signal(signal.SIGALRM, _give_up)

    def __enter__(self) -> int:
        if self._depth:
            self._depth += 1
            return self._granted
        self._granted = self._threads
        if self._monotonic_s() < self._resume_at_s:
            return self._granted
        if self._threads > 1 and self._is_loading():
            self._granted -= 1
        if self._take(fcntl.LOCK_NB):
            return self._granted
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        try:
            self._take(0)
        except _TooLong:
            self._let_go()
            self._resume_at_s = self._monotonic_s() + PAUSE_S
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return self._granted

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
        first = os.getpid() % self._cores if self._threads == 1 else 0
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | flags, 1, _QUEUE_BYTE)
            fcntl.lockf(self._file, fcntl.LOCK_EX | flags, min(self._granted, self._cores), _FIRST_CORE_BYTE + first)
        except BlockingIOError:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _QUEUE_BYTE)
            return False
        self._depth = 1
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _QUEUE_BYTE)
        return True

    def _is_loading(self) -> bool:
        """Whether any process is in `loading`; those who look don't see each other."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, _LOAD_BYTES, _FIRST_LOAD_BYTE)
        except BlockingIOError:
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, _LOAD_BYTES, _FIRST_LOAD_BYTE)
        return False

    def _let_go(self) -> None:
        self._depth = 0
        fcntl.lockf(self._file, fcntl.LOCK_UN, 0, 0)


def turnstile_for(config: EngineConfig) -> AbstractContextManager[int]:
    """The turnstile of this engine; one that lets everybody through where the cores are not what it computes on."""
    if config.turns_path is None or config.gpu_layers != 0:
        return nullcontext(config.threads)
    return Turnstile(config.turns_path, cores=usable_cores(), threads=config.threads)


@contextmanager
def loading(path: Path | None) -> Iterator[None]:
    """Around the part of a load that computes: steps at the turnstile of this path leave it a core. Without a path
    nobody is told. Not within a turn: record locks go with the first descriptor of their file that is closed."""
    if path is None:
        yield
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, _FIRST_LOAD_BYTE + os.getpid() % _LOAD_BYTES)
        yield
    finally:
        os.close(file)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise _TooLong
