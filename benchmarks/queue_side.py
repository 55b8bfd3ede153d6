"""The two kinds of side of the queue benchmark: Keepwarm with an engine that answers at once, and a peer's worker.

Both use the same server with the same settings, the one that Keepwarm ships. A round is a number of jobs with payloads
of the same size; its figures are jobs per second from the first send to the last job done, and CPU time by process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks import machine
from benchmarks.lean_client import run_clients
from benchmarks.load import Load
from benchmarks.queue_peers import tally
from benchmarks.queue_report import Round
from tests.support.stack import DEMO_MODELS, Stack, wait_until

MODEL = "keepwarm-demo-q8_0"  # its file is read by nobody: the engine is a fake
CLIENTS = tally.IN_FLIGHT  # requests under way
SLOTS = CLIENTS  # as many as the peers have threads


class Side(Protocol):
    name: str

    def run(self, number: int, jobs: int) -> Round: ...


class KeepwarmSide:
    """HTTP in, SSE out. The clients' process is not counted: of the peers' producers the work of a front is asked."""

    name = "keepwarm"

    def __init__(self, port: int, pids: dict[str, int], payload_bytes: int) -> None:
        self._port = port
        self._pids = pids
        self._payload_bytes = payload_bytes

    def run(self, number: int, jobs: int) -> Round:
        load = Load(
            prompts=tuple(
                tuple(
                    tally.text(f"r{number}", index, jobs, self._payload_bytes) for index in range(client, jobs, CLIENTS)
                )
                for client in range(CLIENTS)
            ),
            num_tokens=1,
        )
        before = _cpu_s(self._pids)
        answers = run_clients(self._port, MODEL, load)
        return _round(jobs, answers.wall_s, before, _cpu_s(self._pids))


class PeerSide:
    """A producer in a process of its own, and one worker process."""

    def __init__(self, name: str, producer: subprocess.Popen[str], pids: dict[str, int]) -> None:
        self.name = name
        self._producer = producer
        self._pids = pids

    def run(self, number: int, jobs: int) -> Round:
        assert self._producer.stdin is not None
        assert self._producer.stdout is not None
        before = _cpu_s(self._pids)
        self._producer.stdin.write(f"r{number} {jobs}\n")
        self._producer.stdin.flush()
        line = self._producer.stdout.readline()
        if not line:
            raise RuntimeError(f"the producer of {self.name} has ended; its words are in its log")
        took = json.loads(line)
        return _round(jobs, took["wall_s"], before, _cpu_s(self._pids) | {"producer": took["cpu_s"]})


@contextmanager
def keepwarm(stack: Stack, store_pid: int, payload_bytes: int) -> Iterator[KeepwarmSide]:
    processes = {"worker": stack.start_worker(), "controller": stack.start_controller()}
    api = stack.start_api()
    api.wait_ready()
    api.finished(api.submit(model=MODEL, prompt="warm", max_tokens=1))
    wait_until(lambda: bool(api.runners(MODEL)), "the runner is in the worker's heartbeat")
    (runner,) = api.runners(MODEL)
    pids = {name: process.pid for name, process in processes.items()}
    pids |= {"api": api.process.pid, "runner": runner["pid"], "store": store_pid}
    yield KeepwarmSide(int(api.url.rpartition(":")[2]), pids, payload_bytes)


@contextmanager
def peer(name: str, python: Path, stack: Stack, store_pid: int, payload_bytes: int) -> Iterator[PeerSide]:
    """Raises subprocess.CalledProcessError where its packages are missing."""
    env = {**os.environ, "PEER_SOCKET": str(stack.home / "store" / "valkey.sock"), "PYTHONWARNINGS": "ignore"}
    where = {"cwd": Path(__file__).resolve().parent.parent, "env": env, "text": True}
    ask = f"import benchmarks.queue_peers.{name}_peer as p; print(*p.WORKER)"
    found = subprocess.run([str(python), "-c", ask], **where, stdout=subprocess.PIPE, check=True)  # type: ignore[call-overload]
    produce = [str(python), "-m", "benchmarks.queue_peers.produce", name, str(payload_bytes)]
    with ExitStack() as running:
        log = running.enter_context((stack.home / f"{name}.log").open("wb"))
        worker = subprocess.Popen([str(python), "-m", *found.stdout.split()], **where, stdout=log, stderr=log)  # type: ignore[call-overload]
        running.callback(_end, worker)
        producer = subprocess.Popen(  # type: ignore[call-overload]
            produce, **where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        running.callback(_end, producer)
        side = PeerSide(name, producer, {"worker": worker.pid, "store": store_pid})
        side.run(-1, tally.IN_FLIGHT)  # both are up, and connected
        yield side


def new_stack(home: Path) -> Stack:
    models = home / "models"
    models.mkdir(parents=True)
    shutil.copy(DEMO_MODELS / f"{MODEL}.gguf", models)
    return Stack(home, models, KEEPWARM_ENGINE="fake", KEEPWARM_SLOTS=str(SLOTS), KEEPWARM_PARKED_MEMORY="0")


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
        child.terminate()
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cpu_s(pids: dict[str, int]) -> dict[str, float]:
    """Of the processes and their children: some peers have a supervisor."""
    return {name: _tree_cpu_s(pid) for name, pid in pids.items()}


def _tree_cpu_s(pid: int) -> float:
    if pid == os.getpid() or sys.platform != "linux":
        return machine.process_cpu_s(pid)
    children = [] if _has_own_entry(pid) else psutil.Process(pid).children(recursive=True)
    return machine.process_cpu_s(pid) + sum(machine.process_cpu_s(child.pid) for child in children)


def _has_own_entry(pid: int) -> bool:
    """Keepwarm's worker has its runner as a child, which is listed by itself."""
    return "workers" in psutil.Process(pid).cmdline()


def _round(jobs: int, wall_s: float, before: dict[str, float], after: dict[str, float]) -> Round:
    return Round(
        jobs_per_s=jobs / wall_s,
        cpu_us={name: (cpu_s - before.get(name, 0.0)) * 1e6 / jobs for name, cpu_s in after.items()},
    )
