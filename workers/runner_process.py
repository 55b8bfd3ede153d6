"""The main program of a runner: one process, one model, one socket to its worker.

Threads: `receive` parses frames and notices at once that the worker is gone; `prepare` renders and tokenises, so that a
long prompt never stalls a step (for a short one `receive` does it); the main thread owns the engine and loops over its
steps. Signals are ignored: the worker decides, by Shutdown, by closing the socket, or with SIGKILL.

Exit codes: 0 told to go (or the worker is gone), 3 the model could not be loaded, 4 the engine failed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, assert_never, get_args

import setproctitle

from tasks.errors import KeepwarmError, ModelLoadFailed
from tasks.failpoints import failpoint
from tasks.fleet import ModelKind
from tasks.jobs import JobError, Priority
from workers.engine.base import Engine, EngineFailed, Prepared
from workers.engine.sequence import Sequence
from workers.framing import BrokenFrame, FrameReader, FrameWriter, RequestDecoder
from workers.messages import (
    READ_SHARE,
    Cancel,
    Encode,
    Fatal,
    FromRunner,
    Generate,
    LoadFailed,
    LoadProgress,
    OpenSlots,
    Rejected,
    Shutdown,
)
from workers.runner_launch import EngineKind, RunnerConfig, receive_config
from workers.step_frames import StepFrames

EXIT_OK, EXIT_LOAD_FAILED, EXIT_ENGINE_FAILED = 0, 3, 4
PROGRESS_INTERVAL_S = 0.1
QUICK_MESSAGES, QUICK_CHARS = 8, 2_000  # up to so many the thread that reads the socket prepares itself

Request = Generate | Encode
Work = Prepared | Cancel | OpenSlots | Shutdown  # what reaches the engine thread
Prepare = Callable[[Request], Prepared]
Send = Callable[[FromRunner], None]


def main(arguments: list[str] | None = None) -> NoReturn:
    kind, connection = take_over("workers.runner_process", arguments)
    setproctitle.setproctitle("keepwarm runner: spare")
    import_engine(kind)
    run(await_config(connection), connection)


def take_over(module: str, arguments: list[str] | None) -> tuple[EngineKind, socket.socket]:
    """What every process begins with that `runner_launch.spawn` starts."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the worker")
    parser.add_argument("--kind", choices=get_args(EngineKind), required=True, help="engine to import")
    options = parser.parse_args(arguments)
    faulthandler.enable()  # a crash in native code leaves its Python stack in the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return options.kind, socket.socket(fileno=options.fd)


def await_config(connection: socket.socket) -> RunnerConfig:
    """Ends the process when the worker has gone before."""
    try:
        return receive_config(connection)
    except (EOFError, OSError):
        exit_now(EXIT_OK)


def run(config: RunnerConfig, connection: socket.socket) -> NoReturn:
    """Be the runner of this model."""
    setproctitle.setproctitle(f"keepwarm runner: {config.model}")
    redirect_output(config.log_path)
    RunnerProcess(config, connection).run()


def redirect_output(log_path: Path) -> None:
    """To the end of the log, wherever that is by then: it is emptied under us when it grows too large."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def import_engine(kind: EngineKind) -> None:
    """Ahead of the model: it takes a third of a second. What goes wrong here is reported when the engine is built."""
    with contextlib.suppress(Exception):
        match kind:
            case "fake":
                import workers.engine.fake
            case "llama_cpp":
                import workers.engine.llama_cpp  # noqa: F401


def exit_now(code: int) -> NoReturn:
    """Without interpreter teardown: native threads may be in the middle of a decode."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class RunnerProcess:
    """Wires socket, threads and engine together."""

    def __init__(self, config: RunnerConfig, connection: socket.socket) -> None:
        self._config = config
        self._reader = FrameReader(connection, RequestDecoder())
        self._writer = FrameWriter(connection)
        self._work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._intake = Intake(self._work, self._send, self._hurry)
        self._engine: Engine[Any] | None = None  # None until it is loaded

    def run(self) -> NoReturn:
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        engine = self._engine = self._load()
        prepare = functools.partial(self._intake.prepare_forever, engine.prepare)
        threading.Thread(target=prepare, name="prepare", daemon=True).start()
        try:
            with StepFrames(self._send, interval_s=self._config.frame_s) as frames:
                self._step_until_shutdown(engine, frames)
        except EngineFailed as error:
            self._send(Fatal(str(error)))
            exit_now(EXIT_ENGINE_FAILED)
        except Exception as error:  # a bug; the worker shall hear of it at once, not by a closed socket
            traceback.print_exception(error)
            self._send(Fatal(f"The engine broke down ({type(error).__name__}); see the runner's log."))
            exit_now(EXIT_ENGINE_FAILED)
        engine.close()
        exit_now(EXIT_OK)

    def _load(self) -> Engine[Any]:
        try:
            engine = build_engine(self._config)
            ready = engine.load(ThrottledProgress(self._send))
        except ModelLoadFailed as error:
            self._send(LoadFailed(str(error)))
            exit_now(EXIT_LOAD_FAILED)
        except Exception as error:  # llama.cpp's library can't be loaded, memory is short, or a bug
            traceback.print_exception(error)
            self._send(LoadFailed(f"The engine can't start: {type(error).__name__}: {error}"))
            exit_now(EXIT_LOAD_FAILED)
        self._send(ready)
        return engine

    def _step_until_shutdown(self, engine: Engine[Any], frames: StepFrames) -> None:
        while True:
            if not engine.has_work and self._work.empty():
                engine.rest()
            taken = self._take_work(wait=not engine.has_work)
            if taken:
                frames.flush()  # the next step has a prompt to read
            for work in taken:
                match work:
                    case Cancel(key):
                        engine.cancel(key)
                    case OpenSlots(count):
                        engine.open_slots(count)
                    case Shutdown():
                        return
                    case _:
                        if isinstance(work, Sequence) and work.priority is Priority.BATCH:
                            frames.let_wait(work.key)
                        engine.add(work)
            if engine.has_work:
                failpoint("before_step")
                outputs = engine.step()
                failpoint("after_step")
                frames.add(outputs)

    def _take_work(self, *, wait: bool) -> list[Work]:
        """All that has arrived; blocks for the first item when the engine is idle."""
        taken = [self._work.get()] if wait else []
        while not self._work.empty():  # the only consumer: what is there stays there
            taken.append(self._work.get())
        return taken

    def _receive(self) -> None:
        """Ends the process when the worker closes the socket or sends garbage, also during a load or a decode."""
        try:
            for message in self._reader:
                match message:
                    case Generate() | Encode():
                        self._intake.take(message)
                    case Cancel():
                        self._intake.cancel(message)
                        if self._engine is not None:
                            self._engine.interrupt(message.key)
                    case OpenSlots():
                        self._work.put(message)
                    case Shutdown():
                        if self._engine is None:
                            exit_now(EXIT_OK)
                        self._work.put(message)
                    case _:
                        assert_never(message)
        except (BrokenFrame, OSError) as error:
            print(f"runner: lost the worker: {error}", file=sys.stderr)
        exit_now(EXIT_OK)

    def _hurry(self) -> None:
        if self._engine is not None:
            self._engine.hurry()

    def _send(self, message: FromRunner) -> None:
        try:
            self._writer.send(message)
        except OSError:  # the worker is gone; nobody needs this process any more
            exit_now(EXIT_OK)


class Intake:
    """Prepares requests in their own thread and keeps each Cancel behind the work that it ends.

    A request that is quickly prepared, while no other one is, doesn't wait for that thread to wake up."""

    def __init__(self, work: queue.SimpleQueue[Work], send: Send, hurry: Callable[[], None]) -> None:
        """`hurry` is called when work is ready that is more urgent than batch work."""
        self._work = work
        self._send = send
        self._hurry = hurry
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._preparing: dict[int, Cancel | None] = {}  # key → the Cancel that came meanwhile
        self._prepare_call: Prepare | None = None  # None until the model is loaded

    def take(self, message: Request) -> None:
        with self._lock:
            self._preparing[message.key] = None
            is_alone = len(self._preparing) == 1
        if is_alone and self._prepare_call is not None and is_quickly_prepared(message):
            self._prepare(message, self._prepare_call)
        else:
            self._requests.put(message)

    def cancel(self, message: Cancel) -> None:
        with self._lock:
            if message.key in self._preparing:
                self._preparing[message.key] = message
                return
        self._work.put(message)

    def prepare_forever(self, prepare: Prepare) -> None:
        self._prepare_call = prepare
        while True:
            self._prepare(self._requests.get(), prepare)

    def _prepare(self, message: Request, prepare: Prepare) -> None:
        try:
            prepared = prepare(message)
        except Exception as error:
            with self._lock:
                del self._preparing[message.key]
            self._send(Rejected(message.key, as_job_error(error)))
            return
        with self._lock:
            cancel = self._preparing.pop(message.key)
            self._work.put(prepared)
            if cancel is not None:
                self._work.put(cancel)
        if isinstance(message, Generate) and message.priority < Priority.BATCH:
            self._hurry()


def is_quickly_prepared(message: Request) -> bool:
    """Whether that takes less than a millisecond: little text, and no grammar, schema or tools to compile."""
    if isinstance(message, Encode) or message.forced_ids or message.request.answer_format or message.request.tools:
        return False
    texts = [message.request.prompt or "", *(each.content for each in message.request.messages or ())]
    return len(texts) <= QUICK_MESSAGES and sum(map(len, texts)) <= QUICK_CHARS


class ThrottledProgress:
    """Sends load progress at most every PROGRESS_INTERVAL_S, and always the end of the file and of the load."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sent_at = -PROGRESS_INTERVAL_S
        self._before = 0.0

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        is_milestone = any(self._before < each <= fraction for each in (READ_SHARE, 1.0))
        self._before = fraction
        if is_milestone or now - self._sent_at >= PROGRESS_INTERVAL_S:
            self._sent_at = now
            self._send(LoadProgress(fraction))


def as_job_error(error: Exception) -> JobError:
    """What the client may see of an error in `prepare`: ours in full, a bug by its type only."""
    if isinstance(error, KeepwarmError):
        return JobError(code=error.code, message=str(error), param=getattr(error, "param", None))
    traceback.print_exception(error)  # to the runner's log
    return JobError(code=KeepwarmError.code, message=f"The request could not be prepared ({type(error).__name__}).")


def build_engine(config: RunnerConfig) -> Engine[Any]:
    """Imported late: a fake engine needs no llama.cpp, and importing that takes a quarter of a second."""
    if config.kind == "fake":
        from workers.engine.fake import FakeEngine

        return FakeEngine(config.engine, config.fake)
    if config.engine.model_kind is not ModelKind.GENERATE:
        from workers.engine.llama_encoder import LlamaEncoder

        return LlamaEncoder(config.engine)
    from workers.engine.llama_cpp import LlamaEngine

    return LlamaEngine(config.engine)


if __name__ == "__main__":
    main()
