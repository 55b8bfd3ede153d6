"""Simulate: the production placement policy beside other systems' rules and bounds, on synthetic and real demand.

Time to first token of interactive requests, on 3 workers of 20 GB with 16 models of 127 GB (`simulation/parameters.py`
has all assumptions). Load 1 is what the devices could serve with half of a model's slots busy and no loads at all.
The policy was tuned on seeds below 100; the report uses seeds from 100 on. Ratios are paired by seed.

    python -m benchmarks simulate                                    the whole grid (some minutes on two cores)
    python -m benchmarks simulate --quick                            one minute
    python -m benchmarks simulate --models-trace A.csv --arrivals-trace B.csv      real popularity and arrivals as well

    python -m benchmarks simulate --calibrate swap.json              replay real runs of `benchmarks swap`

`--calibrate` fits the machine's pace on the other runs of the file where there are any, and says how far the simulated
times to the first token are from the measured ones (goal: 15 %).

Traces: `--models-trace` has the columns seconds, model (for instance from the GenTD26 request trace of
alibaba/clusterdata); `--arrivals-trace` TIMESTAMP, ContextTokens, GeneratedTokens (AzurePublicDataset). Neither is
shipped.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from itertools import product
from multiprocessing import Pool
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.machine import RESULTS
from benchmarks.simulation.baselines import line_up
from benchmarks.simulation.calibration_report import show_calibration
from benchmarks.simulation.chart import Panel, Point, line_chart
from benchmarks.simulation.goals import CLAIRVOYANT, OURS, PEER, Seeds, Verdict, lines, p95_ratios, verdicts
from benchmarks.simulation.keepwarm_policy import KeepwarmPolicy
from benchmarks.simulation.parameters import Hardware, Model, Setting, zoo
from benchmarks.simulation.trial import Figures, run
from benchmarks.simulation.workload import TOKENS_MEAN, Request, synthetic, trace_models, traced
from benchmarks.spread import estimate

ALPHAS, LOADS = (0.5, 0.9, 1.3, 1.7), (0.3, 0.6, 0.9)
FIRST_SEED = 100  # below it: tuning
PLOTTED_CV, OTHER_CVS = 2.0, (1.0, 5.0)  # coefficient of variation of the gaps; the others at load 0.6 only


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """`alpha` None: popularity, order, arrivals and lengths of the traces."""

    alpha: float | None
    cv: float
    load: float

    @property
    def name(self) -> str:
        what = "traces" if self.alpha is None else f"α {self.alpha:g}, CV {self.cv:g}"
        return f"{what}, load {self.load:g}"


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    scenario: Scenario
    policy: str
    seed: int
    figures: Figures


class Task(msgspec.Struct, frozen=True, kw_only=True):
    scenario: Scenario
    policy: str
    seed: int
    duration_s: float
    traces: tuple[str, str] | None


def perform(task: Task) -> Trial:
    setting, requests, rates = _scene(task)
    policy = KeepwarmPolicy() if task.policy == OURS else line_up(rates)[task.policy]()
    figures = run(setting, requests, policy)
    return Trial(scenario=task.scenario, policy=task.policy, seed=task.seed, figures=figures)


def _scene(task: Task) -> tuple[Setting, list[Request], dict[str, float]]:
    """The fleet, the requests, and the true share of each model (for the static placement)."""
    scenario = task.scenario
    if scenario.alpha is None:
        assert task.traces is not None
        names = trace_models(Path(task.traces[0]))
        models = tuple(
            Model(id=name, bytes=like.bytes, slots=like.slots)
            for name, like in zip(names, zoo(len(names)), strict=True)
        )
        setting = Setting(models=models)
        rate = setting.capacity_per_s(TOKENS_MEAN) * scenario.load
        paths = Path(task.traces[0]), Path(task.traces[1])
        requests = traced(*paths, rate_per_s=rate, duration_s=task.duration_s, seed=task.seed)
        counts = {name: sum(request.model == name for request in requests) for name in names}
        return setting, requests, {name: count / len(requests) for name, count in counts.items()}
    setting = Setting(models=zoo(16))
    names = [model.id for model in setting.models]
    rate = setting.capacity_per_s(TOKENS_MEAN) * scenario.load
    requests = synthetic(
        names, alpha=scenario.alpha, cv=scenario.cv, rate_per_s=rate, duration_s=task.duration_s, seed=task.seed
    )
    weights = 1.0 / np.arange(1, len(names) + 1) ** scenario.alpha
    return setting, requests, dict(zip(names, (weights / weights.sum()).tolist(), strict=True))


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.calibrate is not None:
        return show_calibration(options.calibrate, Console())
    traces = (str(options.models_trace), str(options.arrivals_trace)) if options.models_trace else None
    grid = [*product(ALPHAS, (PLOTTED_CV,), LOADS), *product(ALPHAS, OTHER_CVS, (0.6,))]
    quick = product((0.9, 1.7), (PLOTTED_CV,), (0.6,))
    scenarios = [Scenario(alpha=alpha, cv=cv, load=load) for alpha, cv, load in (quick if options.quick else grid)]
    if traces:
        scenarios += [Scenario(alpha=None, cv=0.0, load=load) for load in LOADS]
    policies = [OURS, *line_up({})] if not options.quick else [OURS, PEER, CLAIRVOYANT]
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    tasks = [
        Task(scenario=scenario, policy=policy, seed=seed, duration_s=options.duration_s, traces=traces)
        for scenario, seed, policy in product(scenarios, seeds, policies)
    ]
    console = Console()
    trials = list(_perform_all(tasks, options.processes, console))
    found: list[Verdict] = []
    for scenario in scenarios:
        seen = by_seed(trials, scenario)
        console.print(_table(scenario, seen, policies))
        found += verdicts(scenario.name, scenario.alpha, seen)
    for line in lines(found):
        console.print(line)
    if not options.quick:
        _keep(trials, found, policies, arguments, options.duration_s, console)
    return 0


def _perform_all(tasks: list[Task], processes: int, console: Console) -> Iterable[Trial]:
    columns = (
        TextColumn("simulated runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress, Pool(processes) as pool:
        bar = progress.add_task("", total=len(tasks))
        for trial in pool.imap_unordered(perform, tasks, chunksize=2):
            progress.advance(bar)
            yield trial


def by_seed(trials: Iterable[Trial], scenario: Scenario) -> Seeds:
    found: dict[int, dict[str, Figures]] = {}
    for trial in trials:
        if trial.scenario == scenario:
            found.setdefault(trial.seed, {})[trial.policy] = trial.figures
    return found


def _table(scenario: Scenario, seeds: Seeds, policies: list[str]) -> Table:
    table = Table(title=f"{scenario.name}: medians over seeds; seconds")
    for column in ("", "P50", "P95", "P95 / LRU + affinity", "P99", "batch P95", "≤ 2 s", "loads", "load time"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for policy in policies:
        own = [each[policy] for each in seeds.values()]
        ratio = estimate(p95_ratios(seeds, policy, PEER))
        median = {name: float(np.median([getattr(each, name) for each in own])) for name in Figures.__struct_fields__}
        table.add_row(
            policy,
            f"{median['ttft_p50_s']:.2f}",
            f"{median['ttft_p95_s']:.1f}",
            ratio.worded(2),
            f"{median['ttft_p99_s']:.1f}",
            f"{median['batch_p95_s']:.1f}",
            f"{median['warm_share']:.0%}",
            f"{median['loads']:.0f}",
            f"{median['load_share']:.1%}",
        )
    return table


def _keep(
    trials: list[Trial],
    found: list[Verdict],
    policies: list[str],
    arguments: list[str],
    duration_s: float,
    console: Console,
) -> None:
    command = f"python -m benchmarks simulate {' '.join(_without_paths(arguments))}".strip()
    report = {
        "command": command,
        "duration_s": duration_s,
        "hardware": msgspec.to_builtins(Hardware()),
        "models": [msgspec.to_builtins(model) for model in zoo(16)],
        "goals": found,
        "trials": sorted(trials, key=lambda each: (each.scenario.name, each.policy, each.seed)),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "simulate.json").write_bytes(msgspec.json.encode(report) + b"\n")
    panels = []
    for load in LOADS:
        lines: dict[str, list[Point]] = {}
        for policy, alpha in product(policies, ALPHAS):
            chosen = [
                trial.figures.ttft_p95_s
                for trial in trials
                if trial.policy == policy and trial.scenario == Scenario(alpha=alpha, cv=PLOTTED_CV, load=load)
            ]
            if chosen:
                spread = estimate(chosen)
                lines.setdefault(policy, []).append(Point(alpha, spread.median, spread.low, spread.high))
        panels.append(Panel(f"load {load:g}", lines))
    chart = line_chart(
        f"Interactive time to first token, P95 (simulated, CV {PLOTTED_CV:g})",
        "Zipf α of the models' popularity", "seconds", panels, footer=command,
    )  # fmt: skip
    (RESULTS / "simulate.svg").write_text(chart, encoding="utf-8")
    console.print(f"kept in {RESULTS / 'simulate.json'} and {RESULTS / 'simulate.svg'}")


def _without_paths(arguments: list[str]) -> list[str]:
    """The command as others would type it: with their own copies of the traces."""
    return [Path(each).name if os.sep in each else each for each in arguments]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks simulate", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two scenarios, three policies, nothing kept")
    parser.add_argument("--calibrate", type=Path, help="JSON of `benchmarks swap`: replay its runs, nothing else")
    parser.add_argument("--seeds", type=int, default=4, help="held-out seeds per scenario")
    parser.add_argument("--duration-s", type=float, default=1200.0, help="of simulated arrivals per run")
    parser.add_argument("--processes", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--models-trace", type=Path, help="CSV with the columns seconds, model")
    parser.add_argument("--arrivals-trace", type=Path, help="CSV with TIMESTAMP, ContextTokens, GeneratedTokens")
    return parser
