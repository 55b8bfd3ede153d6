"""What Keepwarm adds to its engine: first-token latency, tokens per second, and CPU time per streamed token.

Two sides answer the same prompts with the same number of tokens, in one run and in alternation:

    keepwarm   POST /v1/chat/completions (stream) against real processes: API, store, worker, runner, controller
    engine     the same engine in one process, driven by a plain loop: no HTTP, no queue, no store

Both use the same model file, threads, slots and context, and decode greedily. The clients are bare sockets in the
benchmark's own process, whose CPU time counts for neither side (though on few cores it takes its share of them).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import TimeRemainingColumn
from rich.table import Table

from benchmarks import machine
from benchmarks.direct_engine import DirectEngine
from benchmarks.load import Load, Outcome, make_load
from benchmarks.spread import Estimate, estimate, percentile
from benchmarks.step_bar import step_bar
from benchmarks.system import System, engine_config, served_model
from tests.support.stack import DEMO_MODELS

SLOTS = 8
FIRST_TOKEN_GOAL_MS = 4.0
CPU_GOAL_US = 100.0
GOAL_CLIENTS = 8  # the batch is full: the load for which the goal of CPU time is meant
OURS = ("api", "worker", "store")  # what the engine alone does not need; the runner counts beyond the engine's own
BACKGROUND = ("controller",)  # works by the clock, not by the token


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the result: how many clients ask, and how much."""

    clients: int
    requests: int  # of each client, per run
    num_tokens: int  # of each answer

    def load(self, number: int) -> Load:
        return make_load(clients=self.clients, requests=self.requests, num_tokens=self.num_tokens, number=number)


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides under the same load, one right after the other."""

    load: Load
    keepwarm: Outcome
    engine: Outcome

    @property
    def speed_ratio(self) -> float:
        return self.engine.wall_s / self.keepwarm.wall_s

    @property
    def added_first_token_ms(self) -> list[float]:
        ours, theirs = (sum(side.first_token_s, ()) for side in (self.keepwarm, self.engine))
        return [(our - their) * 1e3 for our, their in zip(ours, theirs, strict=True)]

    def cpu_us_per_token(self) -> dict[str, float]:
        """Per process; `runner` is what its process used beyond the engine alone."""
        us = {name: cpu_s * 1e6 / self.load.total_tokens for name, cpu_s in self.keepwarm.cpu_s.items()}
        us["runner"] -= self.engine.cpu_s["engine"] * 1e6 / self.load.total_tokens
        return us


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The result for one shape."""

    shape: Shape
    pairs: int
    engine_tokens_per_s: float
    keepwarm_tokens_per_s: float
    speed_ratio: Estimate
    engine_first_token_ms: float
    added_first_token_ms: Estimate
    added_first_token_p95_ms: float
    engine_cpu_us: float
    added_cpu_us: Estimate  # API + worker + store + the runner beyond the engine
    added_cpu_us_by_process: dict[str, float]  # medians


def measure(system: System, engine: DirectEngine, shape: Shape, numbers: range) -> Iterator[Pair]:
    """One pair per number; who goes first alternates."""
    for number in numbers:
        load = shape.load(number)
        if number % 2:
            keepwarm, alone = system.run(load), engine.run(load)
        else:
            alone, keepwarm = engine.run(load), system.run(load)
        yield Pair(load=load, keepwarm=keepwarm, engine=alone)


def summarise(shape: Shape, pairs: list[Pair]) -> Row:
    by_process = [pair.cpu_us_per_token() for pair in pairs]
    tokens = shape.load(0).total_tokens
    added_ms = [ms for pair in pairs for ms in pair.added_first_token_ms]
    return Row(
        shape=shape,
        pairs=len(pairs),
        engine_tokens_per_s=percentile([tokens / pair.engine.wall_s for pair in pairs], 50),
        keepwarm_tokens_per_s=percentile([tokens / pair.keepwarm.wall_s for pair in pairs], 50),
        speed_ratio=estimate([pair.speed_ratio for pair in pairs]),
        engine_first_token_ms=percentile([s * 1e3 for pair in pairs for s in sum(pair.engine.first_token_s, ())], 50),
        added_first_token_ms=estimate(added_ms),
        added_first_token_p95_ms=percentile(added_ms, 95),
        engine_cpu_us=percentile([pair.engine.cpu_s["engine"] * 1e6 / tokens for pair in pairs], 50),
        added_cpu_us=estimate([sum(us for name, us in each.items() if name not in BACKGROUND) for each in by_process]),
        added_cpu_us_by_process={
            name: percentile([each[name] for each in by_process], 50) for name in (*OURS, "runner", *BACKGROUND)
        },
    )


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    where = machine.description()
    model = served_model(options.model, SLOTS)
    pairs = 3 if options.quick else options.pairs
    shapes = [
        Shape(clients=clients, requests=1 if options.quick else options.requests, num_tokens=options.tokens)
        for clients in options.clients
    ]
    config = engine_config(model, options.threads)
    with ExitStack() as running:
        home = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="keepwarm-bench-")))
        engine = running.enter_context(DirectEngine(config))
        system = running.enter_context(System(home, model, threads=options.threads, slots=SLOTS))
        rows = []
        with step_bar(console, len(shapes) * pairs, width=12, clock=TimeRemainingColumn()) as advance:
            for index, shape in enumerate(shapes):
                list(measure(system, engine, shape, range(-2, 0)))  # warms caches, pools, and this shape's batch size
                measured = []
                for pair in measure(system, engine, shape, range(index * pairs, (index + 1) * pairs)):
                    measured.append(pair)
                    advance(f"{shape.clients} clients")
                rows.append(summarise(shape, measured))
    for table in tables(rows, f"{model.id} ({model.description}), {config.threads} threads, {SLOTS} slots"):
        console.print(table)
    if options.quick:
        return 0
    name = "overhead" if options.model == DEFAULT_MODEL else f"overhead-{model.id}"
    path = machine.result_path(name)
    report = {
        "command": f"python -m benchmarks overhead {' '.join(arguments)}".strip(),
        "machine": where,
        "model": {"id": model.id, "description": model.description, "file_bytes": model.file_bytes},
        "settings": {
            "threads": config.threads,
            "slots": SLOTS,
            "context_length": config.context_length,
            "kv": config.kv_type,
        },
        "goals": {"added_first_token_ms": FIRST_TOKEN_GOAL_MS, "added_cpu_us": CPU_GOAL_US},
        "rows": rows,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    console.print(f"kept in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0


def tables(rows: list[Row], title: str) -> Iterator[Table]:
    """Speed and latency, then CPU time by process."""
    speed = _table(
        "clients", "engine\ntok/s", "keepwarm\ntok/s", "ratio", "first token\nengine ms", "added ms", "p95", title=title
    )
    for row in rows:
        speed.add_row(
            str(row.shape.clients),
            f"{row.engine_tokens_per_s:.0f}",
            f"{row.keepwarm_tokens_per_s:.0f}",
            row.speed_ratio.worded(3),
            f"{row.engine_first_token_ms:.1f}",
            row.added_first_token_ms.worded(2),
            f"{row.added_first_token_p95_ms:.1f}",
        )
    yield speed
    names = (*OURS, "runner", *BACKGROUND)
    cpu = _table("clients", "engine", "added", *names, title="CPU µs per token")
    for row in rows:
        by_process = (f"{row.added_cpu_us_by_process[name]:.1f}" for name in names)
        cpu.add_row(str(row.shape.clients), f"{row.engine_cpu_us:.0f}", row.added_cpu_us.worded(1), *by_process)
    yield cpu


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, caption="in brackets: 95 % confidence interval of the median", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


DEFAULT_MODEL = DEMO_MODELS / "keepwarm-demo-q8_0.gguf"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="GGUF file (default: the demo model)")
    parser.add_argument("--threads", type=int, default=1, help="of the engine, on both sides (default: 1)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--pairs", type=int, default=12, help="runs of each side per number of clients")
    parser.add_argument("--requests", type=int, default=4, help="of each client per run")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 3 short pairs, nothing kept")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
