"""Look at the processes of a running Keepwarm, at what its worker thinks it uses, and at its control group."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx2
import msgspec
import psutil

from benchmarks.memory_group import GroupUse, MemoryGroup
from benchmarks.soaking.flatness import Sample


class PoolUse(msgspec.Struct, frozen=True, kw_only=True):
    """The whole system at one moment."""

    at_s: float
    ledger_bytes: int  # what the worker has reserved or measured
    num_runners: int
    group: GroupUse | None


class Watch:
    """Use as a context manager. `processes`: name → pid of those that stay for the whole run; runners come and go."""

    def __init__(self, url: str, processes: Mapping[str, int], group: MemoryGroup | None, *, every_s: float) -> None:
        self.samples: list[Sample] = []
        self.pool: list[PoolUse] = []
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._group = group
        self._every_s = every_s
        self._http = httpx2.Client(base_url=url, timeout=30)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._http.close()

    def _run(self) -> None:
        next_at = self._began
        while not self._stopping.wait(max(0.0, next_at - time.monotonic())):
            next_at += self._every_s
            at_s = round(time.monotonic() - self._began, 1)
            for name, process in self._processes.items():
                with contextlib.suppress(psutil.Error, OSError):  # one that died is missed in the report
                    self.samples.append(_sample(at_s, name, process))
            with contextlib.suppress(httpx2.HTTPError):
                self.pool.append(self._look_at_pool(at_s))

    def _look_at_pool(self, at_s: float) -> PoolUse:
        workers = self._http.get("/v1/pool").raise_for_status().json()["workers"]
        return PoolUse(
            at_s=at_s,
            ledger_bytes=sum(worker["used_bytes"] for worker in workers),
            num_runners=sum(len(worker["runners"]) for worker in workers),
            group=self._group.use() if self._group else None,
        )


def _sample(at_s: float, name: str, process: psutil.Process) -> Sample:
    resident = process.memory_info().rss
    memory = _rollup(process.pid)
    return Sample(
        at_s=at_s,
        process=name,
        rss_bytes=resident,
        pss_bytes=memory.get("Pss", resident),
        private_bytes=memory.get("Pss_Anon", resident),
        descriptors=process.num_fds(),
        threads=process.num_threads(),
    )


def _rollup(pid: int) -> dict[str, int]:
    """Bytes by name, of /proc/PID/smaps_rollup; empty where there is no such file."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    if not path.exists():
        return {}
    columns = (line.split() for line in path.read_text().splitlines()[1:])
    return {each[0].rstrip(":"): int(each[1]) * 1024 for each in columns}
