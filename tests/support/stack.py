"""A real Keepwarm in processes of its own: store, workers, controllers, APIs, each to be stopped or killed alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
POLL_S = 0.05
REPOSITORY = Path(__file__).parents[2]
DEMO_MODELS = REPOSITORY / "models"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = START_LIMIT_S) -> None:
    """Poll: these are other processes, which have no event to await."""
    give_up_at = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(POLL_S)


class Stack:
    """Use as a context manager; nothing outlives it."""

    def __init__(self, home: Path, models_dir: Path = DEMO_MODELS, **settings: str) -> None:
        self.home = home
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KEEPWARM_")},
            "KEEPWARM_HOME": str(home),
            "KEEPWARM_MODELS_DIR": str(models_dir),
            "KEEPWARM_MEMORY_BUDGET": "1GiB",
            "KEEPWARM_THREADS": "1",
            **settings,
        }
        self.place: tuple[str, ...] = ()  # of all that is spawned without one: see `spawn_at`
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def spawn(self, name: str, *module: str, **settings: str) -> subprocess.Popen[bytes]:
        return self.spawn_at(self.place, name, *module, **settings)

    def spawn_at(self, place: tuple[str, ...], name: str, *module: str, **settings: str) -> subprocess.Popen[bytes]:
        """`python -m module` behind a command that starts it in another place."""
        logs = self.home / "test-logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{name}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*place, sys.executable, "-m", *module],
                cwd=REPOSITORY,
                env={**self._env, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def start_store(self) -> subprocess.Popen[bytes]:
        return self.spawn("store", "tasks.embedded_store")

    def start_worker(self, **settings: str) -> subprocess.Popen[bytes]:
        return self.spawn("worker", "workers", **settings)

    def start_controller(self) -> subprocess.Popen[bytes]:
        return self.spawn("controller", "tasks.controller")

    def start_batcher(self, **settings: str) -> subprocess.Popen[bytes]:
        return self.spawn("batcher", "app.batches", **settings)

    def start_api(self) -> Api:
        port = free_port()
        return Api(self.spawn("api", "app.serve", KEEPWARM_PORT=str(port)), port)

    def start_all(self, workers: int = 1) -> Api:
        """One of everything, ready to serve."""
        self.start_store()
        for _ in range(workers):
            self.start_worker()
        self.start_controller()
        api = self.start_api()
        api.wait_ready(workers)
        return api

    def log(self, name: str) -> str:
        return "".join(path.read_text() for path in sorted((self.home / "test-logs").glob(f"{name}-*.log")))


class Api:
    """One API process and a client of it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx2.Client(base_url=self.url, timeout=60)

    def wait_ready(self, workers: int = 1) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, "the API has ended"
            try:
                return self.http.get("/readyz").is_success and len(self.pool()["workers"]) >= workers
            except httpx2.TransportError:
                return False

        wait_until(is_ready, "the API is ready")

    def pool(self) -> dict:
        return self.http.get("/v1/pool").json()

    def runners(self, model: str | None = None) -> list[dict]:
        runners = [runner for worker in self.pool()["workers"] for runner in worker["runners"]]
        return [runner for runner in runners if model in (None, runner["model"])]

    def submit(self, **body: object) -> str:
        response = self.http.post("/v1/jobs", json=body)
        assert response.status_code == 202, response.text
        return response.json()["id"]

    def finished(self, job_id: str, limit_s: float = START_LIMIT_S) -> dict:
        """The job once it has ended."""
        give_up_at = time.monotonic() + limit_s
        while True:
            job = self.http.get(f"/v1/jobs/{job_id}", params={"wait": 5}).json()
            if job["state"] not in {"queued", "running"}:
                return job
            assert time.monotonic() < give_up_at, f"still {job['state']} after {limit_s} s"

    @contextmanager
    def events(self, job_id: str, after: int | None = None) -> Iterator[Iterator[tuple[int, str, str]]]:
        """(seq, event, raw data) of the numbered events, as they come."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            assert response.is_success, response.read()
            yield _numbered(response.iter_lines())


def _numbered(lines: Iterator[str]) -> Iterator[tuple[int, str, str]]:
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            if "id" in fields:
                yield int(fields["id"]), fields["event"], fields["data"]
            fields = {}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
