"""Many models, memory for some: time to the first token when almost every request wants another model.

Three sides serve the same folder of models to the same requests at the same times, one side after the other:

    keepwarm   a memory budget of `--rooms` models of mean size
    router     llama-server in router mode with at most so many models, whatever their size
    one model  llama-server in router mode with one: load on request, as desktop servers do

    python -m tools.make_random_gguf family --out ~/models/family
    python -m benchmarks swap --models ~/models/family --orders model_requests.csv \\
        --arrivals AzureLLMInferenceTrace_conv.csv --llama-server PATH

A request that fails, or has no end within --limit seconds, counts as a failure and as having waited that long.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import machine
from benchmarks.spread import percentile
from benchmarks.swapping.memory_watch import MemoryUse, MemoryWatch
from benchmarks.swapping.open_loop import Answer, replay
from benchmarks.swapping.schedule import Ask, Scale, make_schedule
from benchmarks.swapping.sides import Server, Setting, keepwarm, llama_router

ONE_MODEL = "one model"
GOALS = {ONE_MODEL: 0.32, "router": 0.60}  # our P95 over theirs, at most
KV_TYPE = "bf16"  # what our runners use on a CPU
MIB = 1024**2


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One side, one schedule."""

    side: str
    rooms: int
    seed: int
    p50_s: float  # to the first token
    p95_s: float
    max_s: float
    loads_per_request: float
    failures: dict[str, int]  # reason → requests
    peak_bytes: int
    budget_bytes: int | None = None  # of Keepwarm


def measure(
    server: Server, setting: Setting, schedule: tuple[Ask, ...], limit_s: float, advance: Callable[[], None]
) -> tuple[list[Answer], MemoryUse]:
    with MemoryWatch(server.roots, setting.models) as watch:
        answers = replay(server.url, schedule, limit_s=limit_s, advance=advance)
    return answers, watch.use


def summarise(
    side: str, rooms: int, seed: int, answers: list[Answer], use: MemoryUse, limit_s: float, budget_bytes: int | None
) -> Run:
    waits = [answer.first_token_s if answer.first_token_s is not None else limit_s for answer in answers]
    failures: dict[str, int] = {}
    for answer in answers:
        if answer.failure is not None:
            failures[answer.failure] = failures.get(answer.failure, 0) + 1
    return Run(
        side=side,
        rooms=rooms,
        seed=seed,
        p50_s=percentile(waits, 50),
        p95_s=percentile(waits, 95),
        max_s=max(waits),
        loads_per_request=use.num_processes / len(answers),
        failures=failures,
        peak_bytes=use.peak_bytes,
        budget_bytes=budget_bytes,
    )


def mean_model_bytes(setting: Setting) -> int:
    """What a model takes on average when it is warm, by the estimate that the worker makes before any load."""
    with tempfile.TemporaryDirectory(prefix="keepwarm-bench-") as home, keepwarm(setting, Path(home), 2**40) as server:
        assert server.api is not None
        needs = [model["keepwarm"]["bytes"] for model in server.api.http.get("/v1/models").json()["data"]]
    return sum(needs) // len(needs)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    where = machine.description()
    setting = Setting(
        models=options.models.resolve(),
        threads=options.threads,
        slots=options.slots,
        context_length=options.context,
        kv_type=KV_TYPE,
    )
    names = sorted(path.stem.lower() for path in setting.models.glob("*.gguf"))
    scale = Scale(rate_per_s=options.rate, num_requests=options.requests, length_divisor=options.length_divisor)
    room_bytes = mean_model_bytes(setting)
    console.print(f"{len(names)} models, {room_bytes / MIB:.0f} MiB each on average when warm")
    runs: list[Run] = []
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for seed in range(options.seed, options.seed + options.repeats):
            schedule = make_schedule(names, options.orders, options.arrivals, scale, seed=seed)
            for side, rooms, start in _sides(setting, options, room_bytes):
                task = progress.add_task(f"{side}, {rooms}, seed {seed}", total=len(schedule))
                with tempfile.TemporaryDirectory(prefix="keepwarm-bench-") as home, start(Path(home)) as server:
                    answers, use = measure(server, setting, schedule, options.limit, partial(progress.advance, task))
                budget = rooms * room_bytes if side == "keepwarm" else None
                run = summarise(side, rooms, seed, answers, use, options.limit, budget)
                runs.append(run)
                console.print(_line(run))
    console.print(table(runs))
    report = {"machine": where, "setting": setting, "scale": scale, "room_bytes": room_bytes, "runs": runs}
    if options.save:
        machine.result_path("swap").write_bytes(
            msgspec.json.format(msgspec.json.encode(report, enc_hook=lambda path: path.name), indent=1) + b"\n"
        )
    return 1 if any(run.failures for run in runs if run.side == "keepwarm") else 0


StartSide = Callable[[Path], AbstractContextManager[Server]]


def _sides(setting: Setting, options: argparse.Namespace, room_bytes: int) -> Iterator[tuple[str, int, StartSide]]:
    binary = options.llama_server
    if binary is not None:
        yield ONE_MODEL, 1, partial(llama_router, setting, binary=binary, max_models=1)
    for rooms in options.rooms:
        yield "keepwarm", rooms, partial(keepwarm, setting, budget_bytes=rooms * room_bytes)
        if binary is not None:
            yield "router", rooms, partial(llama_router, setting, binary=binary, max_models=rooms)


def table(runs: list[Run]) -> Table:
    result = Table(title="Time to the first token, seconds; medians over the schedules")
    for column in ("side", "models", "P50", "P95", "max", "loads/request", "failed", "peak MiB", "P95 ours/theirs"):
        result.add_column(column, justify="left" if column == "side" else "right")
    for side, rooms in dict.fromkeys((run.side, run.rooms) for run in runs):
        mine = [run for run in runs if (run.side, run.rooms) == (side, rooms)]
        result.add_row(
            side,
            str(rooms),
            *(f"{percentile([getattr(run, name) for run in mine], 50):.2f}" for name in ("p50_s", "p95_s", "max_s")),
            f"{percentile([run.loads_per_request for run in mine], 50):.2f}",
            str(sum(sum(run.failures.values()) for run in mine)),
            f"{max(run.peak_bytes for run in mine) / MIB:.0f}",
            _ratios(side, rooms, runs),
        )
    return result


def _ratios(side: str, rooms: int, runs: list[Run]) -> str:
    """Of each budget of ours against this side, schedule by schedule."""
    if side == "keepwarm":
        return ""
    ours = {(run.rooms, run.seed): run for run in runs if run.side == "keepwarm"}
    theirs = {run.seed: run for run in runs if (run.side, run.rooms) == (side, rooms)}
    texts = []
    for size in sorted({size for size, _ in ours} if side == ONE_MODEL else {rooms}):
        pairs = [(ours[size, seed].p95_s, run.p95_s) for seed, run in theirs.items() if (size, seed) in ours]
        if pairs:
            ratio = percentile([our / their for our, their in pairs], 50)
            texts.append(f"{size}: {ratio:.2f} (goal {GOALS[side]:.2f})")
    return ", ".join(texts)


def _line(run: Run) -> str:
    of_budget = f" of {run.budget_bytes / MIB:.0f}" if run.budget_bytes is not None else ""
    return (
        f"{run.side}, {run.rooms}: P50 {run.p50_s:.2f} s, P95 {run.p95_s:.2f} s, max {run.max_s:.2f} s, "
        f"{run.loads_per_request:.2f} loads per request, peak {run.peak_bytes / MIB:.0f}{of_budget} MiB"
        + (f", FAILED {run.failures}" if run.failures else "")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks swap", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True, help="folder with the *.gguf files, and nothing else")
    parser.add_argument("--orders", type=Path, required=True, help="CSV with the column model, one row per request")
    parser.add_argument("--arrivals", type=Path, required=True, help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens")
    parser.add_argument("--llama-server", type=Path, help="the peer's binary (without it: only keepwarm)")
    parser.add_argument("--rooms", type=int, nargs="+", default=[3, 4, 6], help="models that fit (default: 3 4 6)")
    parser.add_argument("--rate", type=float, default=0.5, help="requests per second on average (default: 0.5)")
    parser.add_argument("--requests", type=int, default=150, help="per schedule (default: 150)")
    parser.add_argument("--repeats", type=int, default=3, help="schedules (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--length-divisor", type=int, default=8, help="of the trace's lengths (default: 8)")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for one request (default: 180)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024, help="tokens per slot (default: 1024)")
    parser.add_argument("--save", action="store_true", help="write the result into benchmarks/results")
    return parser
