"""What can go wrong, each as one method that does it once and reports whether it took effect."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from tasks.celery_app import create_celery_app
from tasks.errors import StoreUnavailable
from tasks.jobs import JobId, Priority
from tasks.store.backlog_store import _transport_list
from tasks.store.connection import connect, store_errors
from tasks.wakeups import Wakeups
from tests.chaos.cluster import Cluster

# How often each comes, relative to the others.
WEIGHTS: Mapping[str, int] = {
    "kill_runner": 30,
    "kill_worker": 14,
    "kill_api": 8,
    "kill_controller": 8,
    "kill_store": 8,
    "freeze_worker": 7,
    "cut_pubsub_connections": 5,
    "cut_connections": 5,
    "fill_store": 4,
    "drop_wakeups": 6,
    "duplicate_wakeups": 5,
}
KILLS = frozenset(name for name in WEIGHTS if name.startswith("kill_"))
FULL_BYTES = 500_000  # less than an idle server uses
FULL_S = (0.5, 3.0)


class Faults:
    """All act on one cluster. Thread-safe; some take seconds. `done` counts those that took effect."""

    def __init__(self, cluster: Cluster, rng: random.Random, models: tuple[str, ...]) -> None:
        self._cluster = cluster
        self._rng = rng
        self._models = models
        self._client = connect(cluster.store_settings)
        self._wakeups = Wakeups(create_celery_app(cluster.store_settings))
        self._filling = threading.Lock()
        self.job_ids: list[tuple[JobId, str, Priority]] = []  # whom a duplicate wake-up may name
        self.done: Counter[str] = Counter()

    @property
    def kills(self) -> int:
        return sum(self.done[name] for name in KILLS)

    def draw(self) -> str:
        return self._rng.choices([*WEIGHTS], weights=[*WEIGHTS.values()])[0]

    def inject(self, name: str) -> None:
        method: Callable[[], bool] = getattr(self, name)
        with contextlib.suppress(StoreUnavailable, ProcessLookupError):
            if method():
                self.done[name] += 1

    def kill_runner(self) -> bool:
        pids = self._cluster.runner_pids()
        if pids:
            os.kill(self._rng.choice(pids), signal.SIGKILL)
        return bool(pids)

    def kill_worker(self) -> bool:
        return self._kill("worker")

    def kill_api(self) -> bool:
        return self._kill("api")

    def kill_controller(self) -> bool:
        return self._kill("controller")

    def kill_store(self) -> bool:
        return self._kill("store")

    def freeze_worker(self) -> bool:
        """Past its lease; then it wakes up as a zombie."""
        worker = self._rng.choice(self._cluster.of("worker"))
        pid = worker.process.pid
        if not worker.signal(signal.SIGSTOP):
            return False
        time.sleep(self._cluster.store_settings.lease_s + 1.5)
        if worker.process.pid == pid:
            worker.signal(signal.SIGCONT)
        return True

    def cut_pubsub_connections(self) -> bool:
        return self._cut("pubsub")

    def cut_connections(self) -> bool:
        return self._cut("normal")

    def fill_store(self) -> bool:
        if not self._filling.acquire(blocking=False):
            return False
        try:
            with store_errors():
                allowed = int(self._client.config_get("maxmemory")["maxmemory"])
                self._client.config_set("maxmemory", FULL_BYTES)
            time.sleep(self._rng.uniform(*FULL_S))
            self._make_room(allowed)
        finally:
            self._filling.release()
        return True

    def drop_wakeups(self) -> bool:
        with store_errors():
            lists = [_transport_list(model, priority) for model in self._models for priority in Priority]
            return bool(self._client.delete(*lists))

    def duplicate_wakeups(self) -> bool:
        """For jobs in any state, ended ones too."""
        chosen = self._rng.sample(self.job_ids, min(len(self.job_ids), 5))
        for job in chosen:
            self._wakeups.wake(*job)
        return bool(chosen)

    def _kill(self, name: str) -> bool:
        return self._rng.choice(self._cluster.of(name)).signal(signal.SIGKILL)

    def _cut(self, kind: str) -> bool:
        with store_errors():
            return bool(self._client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))

    def _make_room(self, allowed: int) -> None:
        """The server may be down; one that starts anew has room by itself."""
        for _ in range(100):
            try:
                with store_errors():
                    self._client.config_set("maxmemory", allowed)
                return
            except StoreUnavailable:
                time.sleep(0.1)
        raise AssertionError("the store did not come back")
