"""Processes that another one has forked for us: the kernel makes them our children when that other one is gone. Linux.

https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

from workers.libc import libc

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
FIRST_LOOK_S, LAST_LOOK_S = 0.001, 0.02  # pauses between two looks at a process that is awaited
LOST_EXIT_CODE = 255  # it has ended, and somebody else has seen how


class NoAdoption(Exception):
    """This system doesn't make orphans our children."""


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Meanwhile descendants whose parent ends become our children, and not those of the machine's first process.

    Only meanwhile: whoever adopts must reap, and nobody here reaps what he does not know. One thread at a time. Raises
    NoAdoption."""
    prctl = libc().prctl
    before = ctypes.c_int()
    _check(prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0))
    _check(prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0))
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(before.value), 0, 0, 0)


def _check(result: int) -> None:
    if result != 0:
        raise NoAdoption(f"prctl: {os.strerror(ctypes.get_errno())}")


class AdoptedProcess:
    """A child that `subprocess` has not started: a `runner_launch.ChildProcess`. Thread-safe.

    Nobody else reaps it, so that its pid stays its own until `poll` or `wait` has seen its end."""

    def __init__(self, pid: int) -> None:
        """Raises NoAdoption when it is not our child."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError as error:
            raise NoAdoption("the kernel gave a runner to another process") from error
        self.pid = pid
        self._lock = threading.Lock()
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        with self._lock:
            if self._exit_code is None:
                self._exit_code = self._look()
            return self._exit_code

    def _look(self) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return LOST_EXIT_CODE
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired, as a Popen does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause_s = FIRST_LOOK_S
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_LOOK_S)
        return code

    def kill(self) -> None:
        with self._lock:
            if self._exit_code is None:
                os.kill(self.pid, signal.SIGKILL)


def reap_group(group: int) -> bool:
    """Bury children of this process group that have ended. True when none of it is left."""
    try:
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False
