"""Runners that are forked from one process which has imported the engine: a start takes milliseconds. Linux, CPU.

Starting Python and importing the engine costs half a second of CPU time, which on a small machine the other models'
answers pay for. A forked runner costs none of it and shares the pages of interpreter and libraries with all others.
Not for GPUs: a driver that was loaded does not survive a fork, and who knows what loads one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading

import structlog

from workers.adoption import AdoptedProcess, NoAdoption, adopting, reap_group
from workers.nursery_requests import EXIT_UNFIT, request
from workers.runner_launch import Child, EngineKind, RunnerConfig, spawn, spawn_with, told

log = structlog.get_logger(__name__)

ANSWER_S = 30.0  # for so long a request waits for a nursery that is importing, or has no core
NEXT_LOADS = "loads start processes of their own"


class CannotFork(Exception):
    """The nursery lives, and the system gives it no further process."""


class Nursery:
    """A `RunnerSource`. While there is no nursery, starts wait for processes of their own; `replenish` starts one."""

    def __init__(self, kind: EngineKind) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._gone_groups: set[int] = set()  # of nurseries that died, perhaps in the middle of a fork
        self._is_over = False  # closed, or not possible here

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, config: RunnerConfig) -> Child:
        """A process that loads this model: forked, or started when that fails. Raises OSError."""
        child = self._forked()
        return spawn_with(config) if child is None else told(child, config)

    def replenish(self) -> None:
        """Start a nursery if there is none."""
        with self._lock:
            self._gone_groups = {group for group in self._gone_groups if not reap_group(group)}
            if self._process is not None and self._process.poll() is not None:
                self._lose("it has died")
            if self._is_over or self._process is not None:
                return
            try:  # OpenBLAS would start threads when it is imported
                self._process, self._requests = spawn(self._kind, "workers.nursery_process", OPENBLAS_NUM_THREADS="1")
            except OSError as error:
                log.warning("no_nursery", reason=str(error), now=f"{NEXT_LOADS} until one can be started")

    def close(self) -> None:
        self._is_over = True
        process = self._process
        if process is not None:
            process.kill()  # a start that waits for it gives up
        with self._lock:
            self._bury()
            for group in self._gone_groups:
                reap_group(group)

    def _forked(self) -> Child | None:
        with self._lock:
            if self._process is None or self._requests is None:
                return None
            ours, theirs = socket.socketpair()
            try:
                return _ask(self._requests, ours, theirs)
            except CannotFork as error:
                log.warning("nursery_cannot_fork", pid=self.pid, reason=str(error), now="this load starts a process")
            except NoAdoption as error:
                self._lose(str(error), for_good=True)
            except TimeoutError:
                self._lose(f"it has not answered for {ANSWER_S:g} s")
            except (EOFError, OSError) as error:
                self._lose(str(error))
            return None

    def _lose(self, reason: str, *, for_good: bool = False) -> None:
        """Bury it and say why. The caller holds the lock."""
        is_closing = self._is_over
        exit_code = self._bury()
        if exit_code == EXIT_UNFIT:
            reason, for_good = "importing the engine starts threads here", True
        if for_good:
            self._is_over = True
            log.warning("no_nursery", reason=reason, now=f"{NEXT_LOADS}, and take longer")
        elif not is_closing:
            log.warning("nursery_lost", reason=reason, exit_code=exit_code, now=f"{NEXT_LOADS} until there is another")

    def _bury(self) -> int | None:
        """How it ended, if there was one. The caller holds the lock."""
        process, requests = self._process, self._requests
        self._process = self._requests = None
        if process is None or requests is None:
            return None
        requests.close()
        process.kill()
        exit_code = process.wait()
        if not reap_group(process.pid):
            self._gone_groups.add(process.pid)
        return exit_code


def _ask(requests: socket.socket, ours: socket.socket, theirs: socket.socket) -> Child:
    """A runner that has `theirs`. Raises CannotFork, NoAdoption, EOFError, OSError; TimeoutError when it hangs."""
    requests.settimeout(ANSWER_S)
    try:
        with theirs, adopting():
            answer = request(requests, theirs)
        if answer < 0:
            raise CannotFork(os.strerror(-answer))
        return AdoptedProcess(answer), ours
    except BaseException:
        ours.close()
        raise
