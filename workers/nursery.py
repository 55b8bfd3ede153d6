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


class NurseryLost(Exception):
    """It is dead or hangs, or this system doesn't let us adopt what it forks."""


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
        """A process that loads this model. Raises OSError, also when the nursery can't fork."""
        child = self._forked()
        return spawn_with(config) if child is None else told(child, config)

    def replenish(self) -> None:
        """Start a nursery if there is none."""
        with self._lock:
            self._gone_groups = {group for group in self._gone_groups if not reap_group(group)}
            if self._process is not None and self._process.poll() is not None:
                self._bury()
            if self._is_over or self._process is not None:
                return
            try:  # OpenBLAS would start threads when it is imported
                self._process, self._requests = spawn(self._kind, "workers.nursery_process", OPENBLAS_NUM_THREADS="1")
            except OSError as error:  # the next load starts its own process
                log.warning("no_nursery", reason=str(error))

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
                with theirs:
                    return self._ask(self._requests, theirs), ours
            except NurseryLost as lost:
                ours.close()
                log.warning("nursery_lost", reason=str(lost))
                self._bury()
                return None
            except BaseException:
                ours.close()
                raise

    def _ask(self, requests: socket.socket, theirs: socket.socket) -> AdoptedProcess:
        """Raises NurseryLost, and OSError when it lives and can't fork."""
        requests.settimeout(ANSWER_S)
        try:
            with adopting():
                answer = request(requests, theirs)
            if answer > 0:
                return AdoptedProcess(answer)
        except NoAdoption as error:
            self._is_over = True
            raise NurseryLost(str(error)) from error
        except (EOFError, OSError) as error:
            raise NurseryLost(str(error)) from error
        raise OSError(-answer, f"The nursery can't fork a runner: {os.strerror(-answer)}")

    def _bury(self) -> None:
        """The caller holds the lock."""
        process, requests = self._process, self._requests
        self._process = self._requests = None
        if process is None or requests is None:
            return
        requests.close()
        process.kill()
        if process.wait() == EXIT_UNFIT:
            self._is_over = True
            log.warning("no_nursery", reason="importing the engine starts threads here; every load takes longer")
        if not reap_group(process.pid):
            self._gone_groups.add(process.pid)
