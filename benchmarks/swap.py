"""Many models, memory for some: time to the first token when almost every request wants another model.

Three sides serve the same folder of models to the same requests at the same times, one side after the other, in an
order that changes from schedule to schedule:

    keepwarm   a memory budget of `--rooms` models of mean size
    router     llama-server in router mode with at most so many models, whatever their size
    one model  llama-server in router mode with one: load on request, as desktop servers do

Each side runs as a whole in a control group, on a machine that has no more memory: `--rooms` models of mean size, as
they are when they are warm, and `--services` MiB for everything else. The limit covers private memory and the page
cache, which is empty at the start. So whoever has memory left finds models in the page cache, and all others come from
the disk, as where there are more models than memory. Keepwarm's processes (front, store, controller, worker) are in the
group too, and take ten times of what the router takes beside its models.

    python -m tools.make_random_gguf family --out ~/models/family
    python -m benchmarks swap --models ~/models/family --orders model_requests.csv \\
        --arrivals AzureLLMInferenceTrace_conv.csv --llama-server PATH

Models that two cores can run are small files, which a disk gives in a fraction of a second; of models that fill 64 GB,
it is the load that takes seconds. `--disk` brings that back: D MB/s for folders of W GB read a model in as long as a
disk of D × 64 / W MB/s reads one from a folder of 64 GB.

The first quarter of each schedule's time is a warm-up: in a short replay of many models a large part of the requests
are a model's first one, which waits for a load whoever serves it, and P95 says nothing else. Figures are given for all
requests, and for those that are due after the warm-up. `busy` is the share of all cores that computed. Choose a rate at
which Keepwarm is busy and not behind at the end.

Every run is kept when it is over; the same command again goes on behind the last one. A request that fails, or has no
end within --limit seconds, counts as a failure and as having waited that long.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import product
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine
from benchmarks.memory_group import MemoryGroup, ReadLimit, drop_from_cache
from benchmarks.swapping.core_watch import CoreWatch
from benchmarks.swapping.memory_watch import MemoryWatch, Weights, read_weights
from benchmarks.swapping.open_loop import replay
from benchmarks.swapping.report import (
    MIB,
    ONE_MODEL,
    OURS,
    ROUTER,
    Loads,
    Report,
    Run,
    Terms,
    failures,
    has_other_asks,
    ledger_line,
    line,
    ratio_lines,
    read_report,
    table,
    waits,
    write_report,
)
from benchmarks.swapping.schedule import Ask, Scale, make_schedule, zipf_schedule
from benchmarks.swapping.sides import Place, Server, Setting, keepwarm, llama_router, model_folder
from benchmarks.swapping.worker_log import load_spans
from tests.support.stack import Api
from workers.devices import CpuDevice
from workers.engine.kv_types import STEADY
from workers.model_folder import FolderScanner
from workers.needs import formula_need

KV_TYPE = STEADY  # what our runners use on a CPU
StartSide = Callable[[Path, Place], AbstractContextManager[Server]]


class Bench:
    """What stays the same for all runs."""

    def __init__(self, models: Path, terms: Terms, weights: dict[str, Weights], limit_s: float) -> None:
        self._models = models
        self._terms = terms
        self._weights = weights
        self._limit_s = limit_s

    def run(
        self, side: str, rooms: int, seed: int, start: StartSide, schedule: tuple[Ask, ...], advance: Callable[[], None]
    ) -> Run:
        room_bytes, services_bytes = self._terms.room_bytes, self._terms.services_bytes
        limit_bytes = None if services_bytes is None else rooms * room_bytes + services_bytes
        with ExitStack() as undo:
            group = (
                undo.enter_context(MemoryGroup(limit_bytes, read_limit=self._read_limit()))
                if limit_bytes is not None
                else None
            )
            if group is not None:
                drop_from_cache(self._models)
            home = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="keepwarm-bench-")))
            server = undo.enter_context(start(home, group.place if group else ()))
            with (
                MemoryWatch(server.roots, self._weights, server.ledger) as watch,
                CoreWatch(schedule[-1].at_s) as cores,
            ):
                began_at_s, began = time.time(), time.monotonic()
                answers = replay(server.url, schedule, limit_s=self._limit_s, advance=advance)
                overrun_s = time.monotonic() - began - schedule[-1].at_s
            held = {Path(path).stem.lower(): held for path, held in watch.use.held_bytes.items()}
            loads = _loads(server.api, self._models, held) if server.api is not None else {}
            spans = load_spans(server.worker_log().splitlines(), began_at_s)
            use = group.use() if group else None
        every = waits(schedule, answers, self._limit_s, warm_up_share=0.0)
        warm = waits(schedule, answers, self._limit_s, warm_up_share=self._terms.warm_up_share)
        return Run(
            side=side,
            rooms=rooms,
            seed=seed,
            p50_s=every.p50_s,
            p95_s=every.p95_s,
            max_s=every.max_s,
            warm_p50_s=warm.p50_s,
            warm_p95_s=warm.p95_s,
            busy_share=cores.busy_share,
            overrun_s=overrun_s,
            loads_per_request=watch.use.num_processes / len(answers),
            failures=failures(answers),
            oom_kills=use.oom_kills if use else None,
            major_faults=use.major_faults if use else None,
            peak_bytes=watch.use.peak_bytes,
            limit_bytes=limit_bytes,
            budget_bytes=rooms * room_bytes if side == OURS else None,
            ledger_errors=watch.use.ledger_errors,
            loads=loads,
            load_spans=spans,
            asks=schedule,
            answers=answers,
        )

    def _read_limit(self) -> ReadLimit | None:
        bytes_per_s = self._terms.read_bytes_per_s
        return None if bytes_per_s is None else ReadLimit(self._models, bytes_per_s)


def _loads(api: Api, folder: Path, held_bytes: Mapping[str, int]) -> dict[str, Loads]:
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(api.http.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            if sample.name in ("keepwarm_model_loads_total", "keepwarm_model_load_seconds_total"):
                found.setdefault(sample.labels["model_name"], {})[sample.name] = sample.value
    needs = {model["id"]: model["keepwarm"]["bytes"] for model in api.http.get("/v1/models").json()["data"]}
    sizes = {path.stem.lower(): path.stat().st_size for path in folder.glob("*.gguf")}
    return {
        model: Loads(
            count=int(figures["keepwarm_model_loads_total"]),
            load_s=figures["keepwarm_model_load_seconds_total"],
            bytes=held_bytes.get(model, needs[model]),
            file_bytes=sizes[model],
        )
        for model, figures in found.items()
        if figures["keepwarm_model_loads_total"]  # others were asked for in vain
    }


def mean_model_bytes(setting: Setting) -> int:
    """What a model takes on average when it is warm, by the formula that a worker starts from."""
    with tempfile.TemporaryDirectory(prefix="keepwarm-bench-") as home:
        folder = model_folder(setting, sorted(setting.models.glob("*.gguf")), Path(home) / "models")
        models = FolderScanner(folder, default_slots=setting.slots).scan().models
        return sum(formula_need(model, CpuDevice()).total_bytes for model in models) // len(models)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if (options.orders is None) != (options.arrivals is None):
        raise SystemExit("--orders and --arrivals go together: models from the one, times and lengths from the other")
    console = Console()
    setting = Setting(
        models=options.models.resolve(),
        threads=options.threads,
        slots=options.slots,
        context_length=options.context,
        kv_type=KV_TYPE,
    )
    scale = Scale(rate_per_s=options.rate, num_requests=options.requests, length_divisor=options.length_divisor)
    known = None if options.fresh else read_report(options.out)
    terms = Terms(
        setting=msgspec.structs.replace(setting, models=Path(setting.models.name)),
        scale=scale,
        room_bytes=known.terms.room_bytes if known else mean_model_bytes(setting),
        services_bytes=options.services * MIB if options.limited else None,
        warm_up_share=options.warm_up,
        read_bytes_per_s=None if options.disk is None else int(options.disk * 1e6),
    )
    if known is not None and known.terms != terms:
        raise SystemExit(f"{options.out} has runs under other terms; --fresh writes over it, --out keeps it")
    report = known or Report(machine=machine.description(), terms=terms, runs=[])
    names = sorted(path.stem.lower() for path in setting.models.glob("*.gguf"))
    console.print(
        f"{len(names)} models, {terms.room_bytes / MIB:.0f} MiB each on average when warm; {len(report.runs)} runs kept"
    )
    bench = Bench(setting.models, terms, read_weights(setting.models), options.limit)
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for seed, rooms, side, start in _plan(setting, options, terms.room_bytes):
            if options.orders is None:
                schedule = zipf_schedule(names, scale, seed=seed)
            else:
                schedule = make_schedule(names, options.orders, options.arrivals, scale, seed=seed)
            if has_other_asks(report.runs, seed, schedule):
                raise SystemExit(f"{options.out} has runs of other requests for seed {seed}: other models or traces")
            if (side, rooms, seed) in {run.key for run in report.runs}:
                continue
            task = progress.add_task(f"{side}, {rooms}, seed {seed}", total=len(schedule))
            run = bench.run(side, rooms, seed, start, schedule, partial(progress.advance, task))
            report = msgspec.structs.replace(report, runs=[*report.runs, run])
            write_report(options.out, report)
            console.print(line(run))
    console.print(table(report.runs, terms.warm_up_share))
    for sentence in ratio_lines(report.runs):
        console.print(sentence)
    console.print(ledger_line(report.runs))
    console.print(f"kept in {options.out}")
    return 1 if any(run.failures or run.oom_kills for run in report.runs if run.side == OURS) else 0


def _plan(setting: Setting, options: argparse.Namespace, room_bytes: int) -> Iterator[tuple[int, int, str, StartSide]]:
    """Seed by seed, size by size; the sides take turns at being first."""
    for number, (seed, rooms) in enumerate(product(range(options.seed, options.seed + options.repeats), options.rooms)):
        sides: list[tuple[str, StartSide]] = [(OURS, partial(keepwarm, setting, budget_bytes=rooms * room_bytes))]
        if options.llama_server is not None:
            router = partial(llama_router, setting, binary=options.llama_server)
            sides += [(ROUTER, partial(router, max_models=rooms)), (ONE_MODEL, partial(router, max_models=1))]
        first = number % len(sides)
        for side, start in sides[first:] + sides[:first]:
            yield seed, rooms, side, start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks swap", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True, help="folder with the *.gguf files, and nothing else")
    parser.add_argument("--orders", type=Path, help="CSV with the column model, one row per request")
    parser.add_argument("--arrivals", type=Path, help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens")
    parser.add_argument("--llama-server", type=Path, help="the peer's binary (without it: only keepwarm)")
    parser.add_argument("--rooms", type=int, nargs="+", default=[3, 4, 6], help="models that fit (default: 3 4 6)")
    parser.add_argument("--services", type=int, default=384, help="MiB beside the models (default: 384)")
    parser.add_argument("--disk", type=float, help="MB/s that each side may read (default: what the disk gives)")
    parser.add_argument("--no-limit", dest="limited", action="store_false", help="no control group: all of the memory")
    parser.add_argument("--rate", type=float, default=0.5, help="requests per second on average (default: 0.5)")
    parser.add_argument("--requests", type=int, default=150, help="per schedule (default: 150)")
    parser.add_argument("--repeats", type=int, default=3, help="schedules (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--length-divisor", type=int, default=16, help="of the trace's lengths (default: 16)")
    parser.add_argument("--warm-up", type=float, default=0.25, help="share of a schedule's time (default: 0.25)")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for one request (default: 180)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024, help="tokens per slot (default: 1024)")
    parser.add_argument("--out", type=Path, default=machine.result_path("swap"), help="JSON; goes on behind its runs")
    parser.add_argument("--fresh", action="store_true", help="forget the runs that --out has")
    return parser
