"""How long an event takes from the store to its client when one front serves a thousand streams.

A writer puts tokens straight into the store, with the code and in the batches of a worker; there is no engine. Clients
on bare sockets read `GET /v1/jobs/{id}/events` from one API process. Writer and clients have processes of their own. A
delay begins before the call that appends the event and ends when the client has it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.spread import percentile
from tests.support.stack import Api, Stack, free_port

P99_GOAL_MS = 150.0
WARM_S = 2.0
STEP = 32  # sequences of one engine step, whose events go in one call


class Run(msgspec.Struct, frozen=True, kw_only=True):
    streams: int
    events_per_s_per_stream: float
    seconds: float
    events_per_s: float  # written, over all streams
    writer_latest_ms: float  # how far the writer fell behind its plan
    p50_ms: float
    p95_ms: float
    p99_ms: float
    worst_ms: float
    cpu_us_per_event: dict[str, float]  # by process
    api_cpu_share_per_stream: float  # of a core
    api_bytes_per_stream: int  # what the process grew by when the streams were opened


class Helper:
    """A process that answers a line with a line."""

    def __init__(self, running: ExitStack, home: Path, name: str, *arguments: str) -> None:
        env = {**os.environ, "KEEPWARM_HOME": str(home)}
        command = [sys.executable, "-m", f"benchmarks.fanout_{name}", *arguments]
        self._process = subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
        )
        running.callback(self._end)
        self._name = name

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self._name} has ended")
        return line

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(streams: int, rate: float, seconds: float) -> Run:
    with ExitStack() as running:
        home = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="keepwarm-bench-"))) / "home"
        home.mkdir()
        stack = running.enter_context(Stack(home, KEEPWARM_LEASE_S="600"))
        store = stack.start_store()
        port = free_port()
        api = Api(stack.spawn("api", "app.serve", KEEPWARM_PORT=str(port)), port)
        _await_answer(api)
        pids = {"api": api.process.pid, "store": store.pid}
        writer = Helper(running, home, "writer", str(streams), str(STEP))
        job_ids = writer.hear()
        before_bytes = psutil.Process(api.process.pid).memory_info().rss
        clients = Helper(running, home, "client", str(port))
        clients.say(job_ids.strip())
        clients.hear()
        _run(writer, clients, streams, rate, WARM_S)
        grown_bytes = psutil.Process(api.process.pid).memory_info().rss - before_bytes
        before = {name: machine.process_cpu_s(pid) for name, pid in pids.items()}
        wrote, read = _run(writer, clients, streams, rate, seconds)
        cpu_s = {name: machine.process_cpu_s(pid) - before[name] for name, pid in pids.items()}
    cpu_s |= {"writer": wrote["cpu_s"], "clients": read["cpu_s"]}
    delays, events = read["delays_ms"], wrote["events"]
    return Run(
        streams=streams,
        events_per_s_per_stream=rate,
        seconds=seconds,
        events_per_s=wrote["events_per_s"],
        writer_latest_ms=wrote["latest_s"] * 1e3,
        p50_ms=percentile(delays, 50),
        p95_ms=percentile(delays, 95),
        p99_ms=percentile(delays, 99),
        worst_ms=max(delays),
        cpu_us_per_event={name: used * 1e6 / events for name, used in cpu_s.items()},
        api_cpu_share_per_stream=cpu_s["api"] / seconds / streams,
        api_bytes_per_stream=grown_bytes // streams,
    )


def _run(writer: Helper, clients: Helper, streams: int, rate: float, seconds: float) -> tuple[dict, dict]:
    clients.say(str(round(rate * seconds) * streams))
    writer.say(f"{rate} {seconds}")
    return json.loads(writer.hear()), json.loads(clients.hear())


def _await_answer(api: Api, limit_s: float = 60.0) -> None:
    """Alive is enough: there is no worker to be ready."""
    give_up_at = time.monotonic() + limit_s
    while True:
        try:
            api.http.get("/livez")
            return
        except Exception:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    where = machine.description()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket per stream, here and in the children
    counts, seconds = ([50], 2.0) if options.quick else (options.streams, options.seconds)
    runs = []
    for streams in counts:
        runs.append(measure(streams, options.rate, seconds))
        console.print(f"{streams} streams: p99 {runs[-1].p99_ms:.0f} ms", highlight=False)
    console.print(_table(runs))
    if options.quick:
        return 0
    report = {
        "command": f"python -m benchmarks fanout {' '.join(arguments)}".strip(),
        "machine": where,
        "goal": {"p99_ms": P99_GOAL_MS},
        "sequences_per_call": STEP,
        "runs": runs,
    }
    path = machine.result_path("fanout")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    console.print(f"kept in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0


def _table(runs: list[Run]) -> Table:
    table = Table(title="One API process; delay from the call that appends to the client, ms")
    for column in ("streams", "events/s", "p50", "p95", "p99", "worst", "API CPU per stream", "API KiB per stream"):
        table.add_column(column, justify="right")
    table.add_column("CPU µs per event")
    for run in runs:
        table.add_row(
            str(run.streams),
            f"{run.events_per_s:.0f}",
            *(f"{ms:.1f}" for ms in (run.p50_ms, run.p95_ms, run.p99_ms, run.worst_ms)),
            f"{run.api_cpu_share_per_stream:.3%} of a core",
            f"{run.api_bytes_per_stream / 1024:.0f}",
            ", ".join(f"{name} {us:.0f}" for name, us in run.cpu_us_per_event.items()),
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fanout", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[100, 500, 1000])
    parser.add_argument("--rate", type=float, default=10.0, help="events per second of each stream")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run, after a warm-up")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 50 streams, 2 s, nothing kept")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
