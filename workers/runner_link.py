"""The wire to one runner process: frames in, frames out, and the process's end. No policy, no states.

The socket is non-blocking underneath: a runner that stops reading must never block a worker thread for good.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from workers.framing import BrokenFrame, FrameDecoder, encode_frame
from workers.messages import FromRunner, ToRunner
from workers.runner_launch import ChildProcess

log = structlog.get_logger(__name__)

READ_BYTES = 256 * 1024


class LinkClosed(Exception):
    """The other end is gone, or what it sent makes no sense."""


class RunnerLink(Protocol):
    """What a Runner needs of its process; tests put a script in its place."""

    @property
    def pid(self) -> int: ...

    def send(self, message: ToRunner) -> None:
        """Raises LinkClosed when the runner does not take it."""
        ...

    def receive(self, timeout_s: float) -> Sequence[FromRunner]:
        """All frames that have arrived, () after the timeout. Raises LinkClosed at the end of the stream."""
        ...

    def exit_code(self) -> int | None:
        """None while the process lives; negative for a signal."""
        ...

    def wait_exit(self, timeout_s: float) -> int | None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Teller:
    """Sends to a runner that may be gone: then nothing happens, since its end settles what is in flight.

    It knows the link alone. A method of the Runner's in its place would make Runner and Flights a cycle, so that each
    runner's memory would wait for the garbage collector long after its end."""

    model: str
    link: RunnerLink

    def __call__(self, message: ToRunner) -> None:
        try:
            self.link.send(message)
        except LinkClosed:
            log.info("runner_deaf", model=self.model, pid=self.link.pid)


class ProcessLink:
    """A real runner: a process and our end of its socket pair."""

    def __init__(self, process: ChildProcess, sock: socket.socket, *, send_timeout_s: float) -> None:
        self._process = process
        self._socket = sock
        self._socket.setblocking(False)
        self._send_timeout_s = send_timeout_s
        self._send_lock = threading.Lock()
        self._decoder = FrameDecoder()
        self._read_poll = select.poll()
        self._read_poll.register(sock, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToRunner) -> None:
        data = memoryview(encode_frame(message))
        deadline = time.monotonic() + self._send_timeout_s
        with self._send_lock:
            while data:
                data = data[self._send_some(data, deadline) :]

    def _send_some(self, data: memoryview, deadline: float) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self.kill()  # a frame cut in the middle can't be repaired
                raise LinkClosed("the runner stopped reading") from None
            return 0
        except OSError as error:
            raise LinkClosed(str(error)) from error

    def receive(self, timeout_s: float) -> Sequence[FromRunner]:
        try:
            if not self._read_poll.poll(timeout_s * 1000):
                return ()
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return ()
        except OSError as error:
            raise LinkClosed(str(error)) from error
        if not data:
            raise LinkClosed("end of stream")
        try:
            return self._decoder.feed(data)
        except BrokenFrame as error:
            raise LinkClosed(f"broken frame: {error}") from error

    def exit_code(self) -> int | None:
        return self._process.poll()

    def wait_exit(self, timeout_s: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._socket.close()
