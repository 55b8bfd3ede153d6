"""A stack of real processes under a supervisor that starts again whatever died, each on a wall clock of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tasks.settings import StoreSettings
from tests.support.gguf_bytes import gguf_bytes
from tests.support.stack import DEMO_MODELS, Stack, free_port

SKEW_SOURCE = Path(__file__).parents[1] / "support" / "clock_skew.c"
WATCH_S = 0.05
CENSUS_TURNS = 20  # runners are counted every second
RESTART_PAUSE_S = 0.6
MAX_SKEW_MS = 600_000


class ClockSkew:
    """Environment that shifts a process's wall clock; none where there is no compiler or no LD_PRELOAD."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "clock_skew.so"
        compiler = shutil.which("cc")
        command = [compiler or "cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(SKEW_SOURCE), "-ldl"]
        self.is_available = (
            compiler is not None and sys.platform == "linux" and subprocess.run(command, check=False).returncode == 0
        )

    def settings(self, skew_ms: int) -> dict[str, str]:
        if not self.is_available:
            return {}
        return {"LD_PRELOAD": str(self._library), "KEEPWARM_TEST_CLOCK_SKEW_MS": str(skew_ms)}


class Member:
    """One place in the cluster, filled by one process after another."""

    def __init__(self, name: str, start: Callable[[Mapping[str, str]], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self._start = start
        self.settings: Mapping[str, str] = {}  # of the next process
        self.process = start(self.settings)
        self._died_at: float | None = None

    def revive(self) -> None:
        if self.process.poll() is None:
            return
        if self._died_at is None:
            self._died_at = time.monotonic()
        elif time.monotonic() - self._died_at >= RESTART_PAUSE_S:
            self._died_at = None
            self.process = self._start(self.settings)

    def signal(self, number: signal.Signals) -> bool:
        """False when nobody was there to get it."""
        if self.process.poll() is not None:
            return False
        os.kill(self.process.pid, number)
        return True


class Cluster:
    """Use as a context manager. Store, controllers, workers and APIs; the store's clock is the true one."""

    def __init__(
        self,
        home: Path,
        rng: random.Random,
        models_dir: Path = DEMO_MODELS,
        *,
        workers: int = 2,
        controllers: int = 2,
        apis: int = 2,
        max_skew_ms: int = MAX_SKEW_MS,
        settings: Mapping[str, str],
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._rng = rng
        self._max_skew_ms = max_skew_ms
        self._skew = ClockSkew(home)
        self._stack = Stack(home, models_dir, **settings)
        self._sizes = {"worker": workers, "controller": controllers}
        self._ports = [free_port() for _ in range(apis)]
        self._closing = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._runners_seen: set[int] = set()
        self.members: list[Member] = []
        self.store_settings = StoreSettings(home=home)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    @property
    def skews(self) -> bool:
        return self._skew.is_available

    def __enter__(self) -> Cluster:
        self._add("store", "tasks.embedded_store", is_skewed=False)
        for name, module in (("worker", "workers"), ("controller", "tasks.controller")):
            for _ in range(self._sizes[name]):
                self._add(name, module)
        for port in self._ports:
            self._add("api", "app.serve", KEEPWARM_PORT=str(port))
        self._supervisor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._supervisor.join()
        for member in self.members:
            member.signal(signal.SIGCONT)
        self._stack.__exit__()

    def of(self, name: str) -> list[Member]:
        return [member for member in self.members if member.name == name]

    def runner_pids(self) -> list[int]:
        """Runner processes of the workers that live."""
        pids = []
        for worker in self.of("worker"):
            with contextlib.suppress(psutil.Error):
                pids += [child.pid for child in psutil.Process(worker.process.pid).children()]
        return pids

    def stray_runner_pids(self) -> list[int]:
        """Runner processes that outlived their worker."""
        owned = self.runner_pids()
        return [pid for pid in self._runners_seen if pid not in owned and is_alive(pid)]

    def log(self, name: str) -> str:
        return self._stack.log(name)

    def _add(self, name: str, module: str, *, is_skewed: bool = True, **settings: str) -> None:
        def start(more: Mapping[str, str]) -> subprocess.Popen[bytes]:
            skew_ms = self._rng.randint(-self._max_skew_ms, self._max_skew_ms) if is_skewed else 0
            skew = self._skew.settings(skew_ms) if skew_ms else {}
            return self._stack.spawn(name, module, **settings, **skew, **more)

        self.members.append(Member(name, start))

    def _supervise(self) -> None:
        for turn in itertools.count():
            for member in self.members:
                member.revive()
            if turn % CENSUS_TURNS == 0:
                self._runners_seen.update(self.runner_pids())
            if self._closing.wait(WATCH_S):
                return


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def write_model_files(folder: Path, names: tuple[str, ...]) -> Path:
    """A models folder for the fake engine: headers that a worker accepts, and next to no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.gguf").write_bytes(gguf_bytes())
    return folder
