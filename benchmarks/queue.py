"""Jobs per second through the whole path with an engine that answers at once, beside bare task queues.

    keepwarm   POST /v1/chat/completions (stream), 32 clients: HTTP, admission, Celery, worker, runner, store, SSE
    peers      one producer and one worker process with 32 threads or tasks, whose task counts and does nothing else

All use the same server with the same settings, and payloads of the same size. Rounds alternate; a ratio is one of the
n-th rounds of two sides. What the peers don't do is in the table: the figures compare the cost of the queue alone
with the cost of all that an answer takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import TimeRemainingColumn
from rich.table import Table

from benchmarks import machine
from benchmarks.queue_plot import plot
from benchmarks.queue_report import GOAL, LACKS, Report, Round, Row, summarise
from benchmarks.queue_side import CLIENTS, Side, keepwarm, new_stack, peer
from benchmarks.step_bar import step_bar
from suites.installing import python_environment

PEERS = ("celery", "dramatiq", "rq", "arq", "saq", "taskiq")
REQUIREMENTS = Path(__file__).parent / "queue_peers" / "requirements.txt"


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    if options.plot is not None:
        plot(machine.RESULTS, options.plot)
        console.print(f"drawn into {options.plot}")
        return 0
    where = machine.description()
    rounds, jobs = (2, 200) if options.quick else (options.rounds, options.jobs)
    missing: dict[str, str] = {}
    measured: dict[str, list[Round]] = {}
    with ExitStack() as running:
        home = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="keepwarm-bench-"))) / "home"
        stack = running.enter_context(new_stack(home))
        store_pid = stack.start_store().pid
        sides: list[Side] = [running.enter_context(keepwarm(stack, store_pid, options.payload))]
        for name in options.peers:
            try:
                python = _python_of(name, options.peers_python)
                sides.append(running.enter_context(peer(name, python, stack, store_pid, options.payload)))
            except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
                missing[name] = str(error)[:300]
                console.print(f"[yellow]{name} can't be measured here:[/] {missing[name]}")
        with step_bar(console, (rounds + 1) * len(sides), width=12, clock=TimeRemainingColumn()) as advance:
            for number in range(rounds + 1):
                order = sides if number % 2 else sides[::-1]
                for side in order:
                    found = side.run(number, jobs)
                    advance(side.name)
                    if number:  # the first round warms
                        measured.setdefault(side.name, []).append(found)
    rows = summarise(measured, [side.name for side in sides])
    console.print(_table(rows, jobs, options.payload))
    for name, lacks in LACKS.items():
        console.print(f"[dim]{name}: {lacks}[/]", highlight=False)
    if options.quick:
        return 0
    report = Report(
        command=f"python -m benchmarks queue {' '.join(arguments)}".strip(),
        machine=where,
        jobs=jobs,
        rounds=rounds,
        payload_bytes=options.payload,
        in_flight=CLIENTS,
        goal=GOAL,
        rows=rows,
        lacks=LACKS,
        missing=missing,
    )
    path = machine.result_path("queue")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    console.print(f"kept in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0


def _python_of(name: str, given: Path | None) -> Path:
    """Celery is measured with the very packages that Keepwarm runs on."""
    if name == "celery":
        return Path(sys.executable)
    return given or python_environment("queue-peers", REQUIREMENTS)


def _table(rows: list[Row], jobs: int, payload_bytes: int) -> Table:
    table = Table(
        title=f"{jobs} jobs of {payload_bytes} bytes per round, {CLIENTS} in flight",
        caption="in brackets: 95 % confidence interval of the median; in all: without the controller (by the clock)",
        caption_justify="left",
    )
    for column in ("", "jobs/s", "keepwarm / it", "CPU µs per job, in all", "by process"):
        table.add_column(column, justify="right" if column else "left", no_wrap=column != "by process")
    for row in rows:
        by_process = ", ".join(f"{name} {us:.0f}" for name, us in row.cpu_us_by_process.items())
        ratio = "" if row.keepwarm_ratio is None else row.keepwarm_ratio.worded(2)
        table.add_row(row.name, row.jobs_per_s.worded(0), ratio, row.cpu_us.worded(0), by_process)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks queue", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2000, help="per round")
    parser.add_argument("--rounds", type=int, default=9, help="of each side")
    parser.add_argument("--payload", type=int, default=256, help="bytes of each job's text")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peers-python", type=Path, help="of an environment with the peers (default: made for this)")
    parser.add_argument("--plot", type=Path, help="only draw the newest kept result into this SVG")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 2 short rounds, nothing kept")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
