"""Start a runner process: the parent's half of `workers.runner_process`.

The child gets one end of a socket pair and reads its RunnerConfig from it as one JSON frame (same 4-byte length as
every other frame), as soon as it has imported its engine: it may be started before its model is known
(`workers.spare_runner`), or be forked from a process that has imported the engine long ago (`workers.nursery`). It
leads a session of its own, so that a Ctrl-C in the worker's terminal doesn't reach it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from workers.engine.base import EngineConfig
from workers.engine.fake_behaviour import FakeBehaviour
from workers.framing import HEADER_BYTES

EngineKind = Literal["llama_cpp", "fake"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """Everything that a runner process needs to know."""

    model: str  # id, for the process title and the log
    engine: EngineConfig
    log_path: Path  # stdout and stderr are appended to it
    frame_s: float = 0.0  # steps that follow one another within so many seconds share a frame
    kind: EngineKind = "llama_cpp"
    fake: FakeBehaviour = field(default_factory=FakeBehaviour)  # read by kind "fake" only


class ChildProcess(Protocol):
    """The process of a runner, whoever started it. A Popen is one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        ...

    def kill(self) -> None: ...


Child = tuple[ChildProcess, socket.socket]


class RunnerSource(Protocol):
    """Where a worker's runners come from. Thread-safe."""

    def start(self, config: RunnerConfig) -> Child:
        """A process that loads this model. Raises OSError."""
        ...

    def replenish(self) -> None:
        """Make ready for the next start, when there is time for it."""
        ...

    def close(self) -> None:
        """End what waits here; runners that were started go on."""
        ...


def spawn(
    kind: EngineKind, module: str = "workers.runner_process", **variables: str
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a runner that waits for its `send_config`, or another module that serves a socket.

    Closing the socket ends the process. The caller reaps it (`Popen.wait`). Raises OSError."""
    parent_end, child_end = socket.socketpair()
    try:
        with child_end:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "--fd", str(child_end.fileno()), "--kind", kind],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,  # the worker's own, until the config names the runner's log
                pass_fds=(child_end.fileno(),),
                start_new_session=True,
                env={**os.environ, "GGML_NO_BACKTRACE": "1", **variables},  # ggml would run gdb on an abort
            )
    except BaseException:
        parent_end.close()
        raise
    return process, parent_end


def spawn_with(config: RunnerConfig) -> Child:
    """A new process that loads this model. Raises OSError."""
    return told(spawn(config.kind), config)


def told(child: Child, config: RunnerConfig) -> Child:
    """The same child, which now loads this model. One that doesn't listen is discarded: raises OSError."""
    try:
        send_config(child[1], config)
    except OSError:
        discard(child)
        raise
    return child


def discard(child: Child) -> None:
    process, connection = child
    connection.close()
    process.kill()
    process.wait()


def send_config(connection: socket.socket, config: RunnerConfig) -> None:
    body = msgspec.json.encode(config, enc_hook=str)
    connection.sendall(len(body).to_bytes(HEADER_BYTES, "big") + body)


def receive_config(connection: socket.socket) -> RunnerConfig:
    """The child's side of `send_config`. Raises EOFError when the worker has gone already."""
    size = int.from_bytes(_read_exactly(connection, HEADER_BYTES), "big")
    return msgspec.json.decode(_read_exactly(connection, size), type=RunnerConfig, dec_hook=_decode_path)


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the worker closed the connection before the runner had started")
        data += part
    return data


def _decode_path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value
