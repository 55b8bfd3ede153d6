"""Soak: two dozen models under a quarter of the memory that their weights take, for half an hour of a trace.

All processes run in a control group whose limit covers their private memory, every runner and the page cache. Requests
are sent at their times, whatever became of those before. Goals: nothing is killed for want of memory, no job fails, the
ledger stays within its budget, and no process that stays grows (`benchmarks/soaking/flatness.py` says how that is
judged).

    python -m benchmarks soak                        half an hour; writes the models first (5.6 GB, once)
    python -m benchmarks soak --minutes 3
    python -m benchmarks soak --orders model_requests.csv --arrivals AzureLLMInferenceTrace_conv.csv

Without traces the order of models is Zipf's, and arrivals and lengths are random, the same for the same seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import machine
from benchmarks.memory_group import MemoryGroup, drop_from_cache
from benchmarks.soaking.family import ensure_family
from benchmarks.soaking.flatness import growth_of
from benchmarks.soaking.report import Report, keep, show
from benchmarks.soaking.watch import Watch
from benchmarks.spread import percentile
from benchmarks.swapping.open_loop import Answer, replay
from benchmarks.swapping.schedule import Ask, Scale, make_schedule, zipf_schedule
from benchmarks.swapping.sides import Setting, model_folder
from tests.support.stack import Stack
from workers.engine.kv_types import STEADY

MIB = 1024**2
MODELS = Path.home() / ".cache" / "keepwarm-soak"


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if (options.orders is None) != (options.arrivals is None):
        raise SystemExit("--orders and --arrivals go together: models from the one, times and lengths from the other")
    console = Console()
    where = machine.description()
    files = ensure_family(options.models, options.count, console)
    weight_bytes = sum(path.stat().st_size for path in files)
    limit_bytes = int(weight_bytes / options.times)
    budget_bytes = limit_bytes - options.services * MIB
    setting = Setting(
        models=options.models,
        threads=options.threads,
        slots=options.slots,
        context_length=options.context,
        kv_type=STEADY,  # what runners use on a CPU
    )
    console.print(
        f"{len(files)} models with {weight_bytes / MIB:.0f} MiB of weights; limit {limit_bytes / MIB:.0f} MiB, "
        f"of which {budget_bytes / MIB:.0f} MiB are the worker's budget"
    )
    scale = Scale(
        rate_per_s=options.rate,
        num_requests=round(options.minutes * 60 * options.rate),
        length_divisor=options.length_divisor,
    )
    names = sorted(path.stem for path in files)
    if options.orders is None:
        schedule = zipf_schedule(names, scale, seed=options.seed)
    else:
        schedule = make_schedule(names, options.orders, options.arrivals, scale, seed=options.seed)
    drop_from_cache(options.models)
    with ExitStack() as undo:
        group = undo.enter_context(MemoryGroup(limit_bytes)) if options.limited else None
        home = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="keepwarm-soak-")))
        watch, answers, counters, deaths = _run(home, setting, files, budget_bytes, group, schedule, options, console)
        use = group.use() if group else None
    loads = counters["keepwarm_model_loads_total"]
    waits = [answer.first_token_s if answer.first_token_s is not None else options.limit for answer in answers]
    report = Report(
        machine=where,
        command=f"python -m benchmarks soak --minutes {options.minutes:g} --rate {options.rate:g} --seed {options.seed}"
        + (" with traces" if options.orders else ""),
        setting=setting,
        scale=scale,
        num_models=len(files),
        weight_bytes=weight_bytes,
        limit_bytes=limit_bytes if group else None,
        budget_bytes=budget_bytes,
        p50_s=percentile(waits, 50),
        p95_s=percentile(waits, 95),
        max_s=max(waits),
        requests=len(answers),
        failures=dict(Counter(answer.failure for answer in answers if answer.failure is not None)),
        oom_kills=use.oom_kills if use else None,
        deaths=deaths,
        broken_attempts=counters["keepwarm_broken_attempts_total"],
        loads_per_request=loads / len(answers),
        mean_load_s=counters["keepwarm_model_load_seconds_total"] / max(loads, 1),
        evictions=counters["keepwarm_evictions_total"],
        peak_ledger_bytes=max(each.ledger_bytes for each in watch.pool),
        peak_private_bytes=max((each.group.private_bytes for each in watch.pool if each.group), default=None),
        growth=growth_of(watch.samples),
        pool=watch.pool,
        samples=watch.samples,
    )
    show(report, console)
    keep(report, options.out, console)
    return 1 if report.complaints else 0


def _run(
    home: Path,
    setting: Setting,
    files: list[Path],
    budget_bytes: int,
    group: MemoryGroup | None,
    schedule: tuple[Ask, ...],
    options: argparse.Namespace,
    console: Console,
) -> tuple[Watch, list[Answer], dict[str, float], list[str]]:
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    folder = model_folder(setting, files, home / "models")
    with Stack(
        home,
        folder,
        KEEPWARM_THREADS=str(setting.threads),
        KEEPWARM_SLOTS=str(setting.slots),
        KEEPWARM_MEMORY_BUDGET=str(budget_bytes),
    ) as stack:
        stack.place = group.place if group else ()
        processes = {
            "store": stack.start_store(),
            "worker": stack.start_worker(),
            "controller": stack.start_controller(),
            "batcher": stack.start_batcher(),
        }
        api = stack.start_api()
        processes["api"] = api.process
        api.wait_ready()
        pids = {name: process.pid for name, process in processes.items()}
        with (
            Progress(*columns, console=console) as progress,
            Watch(api.url, pids, group, every_s=options.every) as watch,
        ):
            task = progress.add_task("", total=len(schedule))
            answers = replay(api.url, schedule, limit_s=options.limit, advance=lambda: progress.advance(task))
        counters = read_counters(api.http)
        deaths = [name for name, process in processes.items() if process.poll() is not None]
    return watch, answers, counters, deaths


def read_counters(http: httpx2.Client) -> dict[str, float]:
    """The fleet's counters, summed over their labels."""
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(http.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            if sample.name.endswith("_total"):
                found[sample.name] += sample.value
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of the trace (default: 30)")
    parser.add_argument("--models", type=Path, default=MODELS, help=f"folder of the models (default: {MODELS})")
    parser.add_argument("--count", type=int, default=24, help="models (default: 24)")
    parser.add_argument("--times", type=float, default=4.0, help="the weights exceed the limit so often (default: 4)")
    parser.add_argument("--services", type=int, default=384, help="MiB of the limit beside the budget (default: 384)")
    parser.add_argument("--no-limit", dest="limited", action="store_false", help="no control group: only the budget")
    parser.add_argument("--orders", type=Path, help="CSV with the column model, one row per request")
    parser.add_argument("--arrivals", type=Path, help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens")
    parser.add_argument("--rate", type=float, default=0.25, help="requests per second on average (default: 0.25)")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--length-divisor", type=int, default=16, help="of the lengths (default: 16)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one request (default: 600)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks (default: 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024, help="tokens per slot (default: 1024)")
    parser.add_argument("--out", type=Path, default=machine.result_path("soak"), help="JSON; the SVG lies beside it")
    return parser
