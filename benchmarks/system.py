"""Keepwarm in processes of its own, serving one warm model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from benchmarks import machine
from benchmarks.lean_client import run_clients
from benchmarks.load import Load, Outcome
from tasks.store.token_writer import Chunk
from tasks.store.verdict import Verdict
from tests.support.stack import Stack, wait_until
from workers.clock import Clock
from workers.engine.base import EngineConfig
from workers.model_files import ModelFile
from workers.model_folder import FolderScanner
from workers.runner_launch import RunnerSource
from workers.runner_starter import RunnerStarter
from workers.spare_runner import SpareRunner


class System:
    """Use as a context manager. `port` and `model` are what a client needs."""

    def __init__(self, home: Path, model: ModelFile, *, threads: int, slots: int) -> None:
        models = home / "models"
        models.mkdir()
        shutil.copy(model.path, models)  # mapped into memory: a file that somebody overwrites would kill the runner
        self.model = model.id
        self._stack = Stack(
            home, models, KEEPWARM_THREADS=str(threads), KEEPWARM_SLOTS=str(slots), KEEPWARM_MEMORY_BUDGET="8GiB"
        )

    def __enter__(self) -> System:
        with ExitStack() as undo:  # a start that fails leaves nothing behind
            undo.enter_context(self._stack)
            self._start()
            undo.pop_all()
        return self

    def _start(self) -> None:
        processes = {
            "store": self._stack.start_store(),
            "worker": self._stack.start_worker(),
            "controller": self._stack.start_controller(),
        }
        api = self._stack.start_api()
        api.wait_ready()
        self.port = int(api.url.rpartition(":")[2])
        api.finished(api.submit(model=self.model, prompt="warm", max_tokens=1))
        wait_until(lambda: bool(api.runners(self.model)), "the runner is in the worker's heartbeat")
        (runner,) = api.runners(self.model)
        self._pids = {name: process.pid for name, process in processes.items()}
        self._pids |= {"api": api.process.pid, "runner": runner["pid"]}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def run(self, load: Load) -> Outcome:
        before = self.cpu_s()
        answers = run_clients(self.port, self.model, load)
        cpu_s = {name: after - before[name] for name, after in self.cpu_s().items()}
        return Outcome(
            wall_s=answers.wall_s,
            first_token_s=answers.first_token_s,
            cpu_s=cpu_s,
            prompt_tokens=answers.prompt_tokens,
            completion_tokens=answers.completion_tokens,
        )

    def cpu_s(self) -> dict[str, float]:
        """CPU time of each process so far."""
        return {name: machine.process_cpu_s(pid) for name, pid in self._pids.items()}


def served_model(path: Path, slots: int) -> ModelFile:
    """The model as a worker with so many slots would serve it."""
    folder = FolderScanner(path.resolve().parent, default_slots=slots).scan()
    return next(model for model in folder.models if model.path.resolve() == path.resolve())


def engine_config(model: ModelFile, threads: int) -> EngineConfig:
    """What a worker with these settings gives its runner."""
    source = SpareRunner("llama_cpp", keeps=False)
    return bare_starter(source, log_dir=Path(), threads=threads).config_for(model).engine


def bare_starter(source: RunnerSource, *, log_dir: Path, threads: int, limit_s: float = 0.0) -> RunnerStarter:
    """Runners on the CPU, without a store and without others beside them."""
    return RunnerStarter(
        source=source,
        sink=Nowhere(),
        clock=Clock(),
        log_dir=log_dir,
        kind="llama_cpp",
        threads=threads,
        turns_path=None,
        gpu_layers=0,
        main_gpu=0,
        use_extra_bufts=True,
        stall_s=limit_s,
        load_stall_s=limit_s,
    )


class Nowhere:
    """A starter needs a sink; nothing is started here."""

    def append(self, chunks: Sequence[Chunk]) -> Sequence[Verdict]:
        raise NotImplementedError
