"""Ten thousand connections to one API process: who is served, who is refused and how, and what it costs in memory.

A third of the clients connect and say nothing, a third stop in the head of a request, a third in its body. All are
open at once; meanwhile health checks and a chat are timed. Then all of them leave.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

import httpx2
import msgspec
import psutil

from benchmarks import machine
from tests.support.stack import DEMO_MODELS, Api, Stack, wait_until

MODEL = "keepwarm-demo-q8_0"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
BEGUN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
HALF_SENT = BEGUN + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
OPENED_AT_ONCE = 500
REPLY_LIMIT_S = 5.0
RECOVERY_LIMIT_S = 60.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    machine: dict[str, object]
    connections: int
    max_connections: int
    opening_s: float
    outcomes: dict[str, int]  # of the clients, by the first line that each got
    health_ms: dict[str, float]  # of /livez while all were open
    failed_health_checks: int
    chat_while_full: int  # status
    rss_mib: dict[str, float]
    bytes_per_connection: float
    recovery_s: float  # from the clients' leaving to a chat that is answered


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks connections", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--limit", type=int, default=4096, help="KEEPWARM_MAX_CONNECTIONS")
    parser.add_argument("--out", type=Path, default=machine.result_path("connections"))
    options = parser.parse_args(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < options.connections + 100:
        parser.error(f"this process may open {hard} files only (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, options.connections + 100), hard))
    with tempfile.TemporaryDirectory(prefix="keepwarm-connections-") as home:
        # The grace is longer than the test, so that nobody makes room by being slow.
        settings = {"KEEPWARM_MAX_CONNECTIONS": str(options.limit), "KEEPWARM_REQUEST_GRACE_S": "300"}
        with Stack(Path(home), DEMO_MODELS, **settings) as stack:
            report = measure(stack.start_all(), options.connections, options.limit)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0 if report.failed_health_checks == 0 and report.recovery_s < RECOVERY_LIMIT_S else 1


def measure(api: Api, connections: int, limit: int) -> Report:
    described = machine.description()
    api.http.post("/v1/chat/completions", json=CHAT).raise_for_status()
    process = psutil.Process(api.process.pid)
    rss = {"before": process.memory_info().rss / 2**20}
    crowd = Crowd(api, connections)
    full = asyncio.run(crowd.visit(process))
    rss |= {"while full": full.rss_mib}
    began = time.monotonic()

    def is_served() -> bool:
        return httpx2.post(f"{api.url}/v1/chat/completions", json=CHAT, timeout=30).status_code == 200

    wait_until(is_served, "a chat is answered again", RECOVERY_LIMIT_S)
    recovery_s = time.monotonic() - began
    rss |= {"after": process.memory_info().rss / 2**20}
    held = min(connections, limit)
    ordered = sorted(full.health_ms)
    return Report(
        machine=described,
        connections=connections,
        max_connections=limit,
        opening_s=round(full.opening_s, 2),
        outcomes=dict(full.outcomes),
        health_ms={
            "median": round(median(ordered), 1),
            "p95": round(quantiles(ordered, n=20)[-1], 1),
            "max": round(ordered[-1], 1),
        },
        failed_health_checks=full.failed_health_checks,
        chat_while_full=full.chat_status,
        rss_mib={when: round(mib, 1) for when, mib in rss.items()},
        bytes_per_connection=round((rss["while full"] - rss["before"]) * 2**20 / held),
        recovery_s=round(recovery_s, 2),
    )


class Visit(msgspec.Struct, kw_only=True):
    """What was seen while all connections were open."""

    opening_s: float = 0.0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    health_ms: list[float] = msgspec.field(default_factory=list)
    failed_health_checks: int = 0
    chat_status: int = 0
    rss_mib: float = 0.0


class Crowd:
    """Clients in one process of their own; they are refused or they wait."""

    def __init__(self, api: Api, connections: int) -> None:
        self._api = api
        self._port = int(api.url.rpartition(":")[2])
        self._connections = connections
        self._writers: list[asyncio.StreamWriter] = []

    async def visit(self, process: psutil.Process) -> Visit:
        seen = Visit()
        all_open = asyncio.Event()
        health = asyncio.create_task(self._check_health(seen, all_open))
        began = time.monotonic()
        gate = asyncio.Semaphore(OPENED_AT_ONCE)
        replies = await asyncio.gather(*(self._client(number, gate) for number in range(self._connections)))
        seen.opening_s = time.monotonic() - began
        seen.outcomes.update(replies)
        async with httpx2.AsyncClient(timeout=30) as http:
            seen.chat_status = (await http.post(f"{self._api.url}/v1/chat/completions", json=CHAT)).status_code
        await asyncio.sleep(3)  # more health checks while it is full
        seen.rss_mib = process.memory_info().rss / 2**20
        all_open.set()
        await health
        for writer in self._writers:
            writer.transport.abort()
        return seen

    async def _client(self, number: int, gate: asyncio.Semaphore) -> str:
        """The first line of what came, or how it went without one."""
        async with gate:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError as error:
                return type(error).__name__
        self._writers.append(writer)
        try:
            writer.write((b"", BEGUN, HALF_SENT)[number % 3])
            async with asyncio.timeout(REPLY_LIMIT_S):
                line = await reader.readline()
        except TimeoutError:
            return "waits"
        except OSError as error:
            return type(error).__name__
        return line.decode().strip() or "closed without a word"

    async def _check_health(self, seen: Visit, all_open: asyncio.Event) -> None:
        while not all_open.is_set():
            began = time.monotonic()
            try:
                async with httpx2.AsyncClient(timeout=10) as http:  # a new connection each time, as probes have
                    (await http.get(f"{self._api.url}/livez")).raise_for_status()
                seen.health_ms.append((time.monotonic() - began) * 1000)
            except httpx2.HTTPError:
                seen.failed_health_checks += 1
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
