"""Loads: what starting a runner and loading a model costs, with a spare process and with runners that are forked.

Both take turns. CPU time is that of all processes: the worker's part, the runner, and whatever is made ready for the
next load. Use a small model: the rest of a load is the same for both.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.system import bare_starter, served_model
from workers.devices import CpuDevice, ModelMapping
from workers.model_files import ModelFile
from workers.nursery import Nursery
from workers.runner_launch import RunnerSource
from workers.runner_starter import RunnerStarter
from workers.spare_runner import SpareRunner

SOURCES: dict[str, Callable[[], RunnerSource]] = {
    "spare": lambda: SpareRunner("llama_cpp", keeps=True),
    "nursery": lambda: Nursery("llama_cpp"),
}
LOOK_S = 0.2
LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Turn:
    """Per load."""

    cpu_s: float
    ready_s: float
    private_bytes: int


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks loads", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "models" / "keepwarm-demo-q8_0.gguf")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--loads", type=int, default=4, help="in each turn of each way")
    options = parser.parse_args(arguments)
    model = served_model(options.model, slots=4)
    turns: dict[str, list[Turn]] = {name: [] for name in SOURCES}
    for _ in range(options.turns):
        for name, make in SOURCES.items():
            turns[name].append(take_turn(make(), model, options.loads))
    table = Table(
        "RUNNERS", "CPU S/LOAD", "FROM – TO", "READY S", "FROM – TO", "PRIVATE MIB", title=str(machine.cpu_name())
    )
    for name, taken in turns.items():
        cpu, ready = sorted(each.cpu_s for each in taken), sorted(each.ready_s for each in taken)
        table.add_row(
            name,
            f"{median(cpu):.3f}",
            f"{cpu[0]:.3f} – {cpu[-1]:.3f}",
            f"{median(ready):.3f}",
            f"{ready[0]:.3f} – {ready[-1]:.3f}",
            f"{median(each.private_bytes for each in taken) / 1024**2:.1f}",
        )
    Console().print(table)
    return 0


def take_turn(source: RunnerSource, model: ModelFile, loads: int) -> Turn:
    with TemporaryDirectory(prefix="keepwarm-loads-") as logs:
        starter = bare_starter(source, log_dir=Path(logs), threads=1, limit_s=LIMIT_S)
        source.replenish()
        try:
            settle()
            before = cpu_s()
            loaded = [load(starter, model) for _ in range(loads)]
            return Turn(
                cpu_s=(cpu_s() - before) / loads,
                ready_s=median(ready_s for ready_s, _ in loaded),
                private_bytes=loaded[-1][1],
            )
        finally:
            source.close()


def load(starter: RunnerStarter, model: ModelFile) -> tuple[float, int]:
    """Seconds until it was ready, and its private bytes; returns when the next load can begin."""
    began = time.monotonic()
    runner = starter(model, need_bytes=0, on_change=lambda: None)
    runner.wait_loaded()
    ready_s = time.monotonic() - began
    taken = CpuDevice().runner_bytes(runner.pid, ModelMapping(paths=(), weight_bytes=0))
    runner.open()
    runner.stop(LIMIT_S)
    runner.wait_gone(LIMIT_S)
    settle()
    return ready_s, taken or 0


def settle() -> None:
    """Wait until what waits for loads has nothing to do: it sleeps, and no time was spent between two looks."""
    deadline = time.monotonic() + LIMIT_S
    last = -1.0
    while time.monotonic() < deadline:
        time.sleep(LOOK_S)
        children = psutil.Process().children()
        spent = sum(machine.process_cpu_s(child.pid) for child in children)
        if children and spent == last and all(child.status() == psutil.STATUS_SLEEPING for child in children):
            return
        last = spent
    raise TimeoutError(f"Processes are still busy after {LIMIT_S} s.")


def cpu_s() -> float:
    """Of this process, its children, and theirs that have ended."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spent = sum(each.ru_utime + each.ru_stime for each in own)
    for child in psutil.Process().children():
        times = child.cpu_times()
        spent += machine.process_cpu_s(child.pid) + times.children_user + times.children_system
    return spent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
