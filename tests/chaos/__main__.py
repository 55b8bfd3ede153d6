"""`make chaos`: the long runs, one on the fake engine and a smaller one with llama.cpp and the demo model.

Prints what was done to whom and what came of it, writes the same as JSON, and exits with 1 if the promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import httpx2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.chaos.checker import Reference
from tests.chaos.cluster import Cluster
from tests.chaos.references import fake_reference, generated_references
from tests.chaos.run import Body, Outcome, Plan, run_chaos
from tests.chaos.setup import (
    DEMO_LENGTHS,
    DEMO_MODEL,
    DEMO_PROMPTS,
    FAKE_MODELS,
    demo_body,
    demo_cluster,
    fake_body,
    fake_cluster,
)
from tests.support.stack import wait_until

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MAX_SHOWN = 20

console = Console()


def main() -> int:
    arguments = _arguments()
    outcomes: dict[str, Outcome] = {}
    folder = Path(tempfile.mkdtemp(prefix="keepwarm-chaos-"))
    if arguments.kills:
        plan = Plan(seed=arguments.seed, models=FAKE_MODELS, jobs=arguments.jobs, kills=arguments.kills)
        with fake_cluster(folder / "fake", arguments.seed, lease_s=arguments.lease_s) as cluster:
            outcomes["fake engine"] = _run("fake engine", plan, cluster, fake_reference, fake_body)
    if arguments.demo_kills:
        plan = Plan(
            seed=arguments.seed,
            models=(DEMO_MODEL,),
            jobs=arguments.demo_jobs,
            kills=arguments.demo_kills,
            fault_interval_s=2.0,
        )
        with demo_cluster(folder / "demo", arguments.seed, lease_s=arguments.lease_s) as cluster:
            url = cluster.urls[0]
            wait_until(lambda: _is_ready(url), "the API is ready")
            console.print("llama.cpp: the undisturbed texts …")
            reference = generated_references(url, cluster.store_settings, DEMO_MODEL, DEMO_PROMPTS, DEMO_LENGTHS)
            outcomes["llama.cpp"] = _run("llama.cpp", plan, cluster, reference, demo_body)
    _print(outcomes)
    path = _write(outcomes, arguments)
    console.print(f"written to {path}; logs in {folder}")
    return 1 if any(outcome.violations for outcome in outcomes.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--demo-jobs", type=int, default=100, help="of the part with llama.cpp")
    parser.add_argument("--demo-kills", type=int, default=20)
    parser.add_argument("--lease-s", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    return parser.parse_args()


def _is_ready(url: str) -> bool:
    try:
        return bool(httpx2.get(f"{url}/v1/pool").json()["workers"])
    except (httpx2.TransportError, KeyError):
        return False


def _run(
    name: str,
    plan: Plan,
    cluster: Cluster,
    reference: Callable[[Body], Reference],
    make_body: Callable[[random.Random], Body],
) -> Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        jobs = progress.add_task(f"{name}: jobs", total=plan.jobs)
        kills = progress.add_task(f"{name}: kills", total=plan.kills)

        def show(jobs_done: int, kills_done: int) -> None:
            progress.update(jobs, completed=jobs_done)
            progress.update(kills, completed=min(kills_done, plan.kills))

        return asyncio.run(run_chaos(plan, cluster, reference, make_body, show))


def _print(outcomes: dict[str, Outcome]) -> None:
    table = Table(title="An acknowledged job ends once, and its stream shows every number once")
    table.add_column("")
    for name in outcomes:
        table.add_column(name, justify="right")
    for label, cell in _ROWS.items():
        table.add_row(label, *(cell(outcome) for outcome in outcomes.values()))
    for fault in sorted({fault for outcome in outcomes.values() for fault in outcome.faults}):
        table.add_row(fault.replace("_", " "), *(str(outcome.faults[fault]) for outcome in outcomes.values()))
    console.print(table)
    for outcome in outcomes.values():
        for violation in outcome.violations[:MAX_SHOWN]:
            console.print(f"[red]{violation}[/red]", soft_wrap=True)


_ROWS: dict[str, Callable[[Outcome], str]] = {
    "violations": lambda each: str(len(each.violations)),
    "jobs acknowledged": lambda each: str(each.acknowledged),
    "ended as": lambda each: ", ".join(f"{count} {state}" for state, count in each.states.most_common()),
    "most attempts of a job": lambda each: str(max(each.attempts, default=0)),
    "jobs of more than one attempt": lambda each: str(
        sum(count for number, count in each.attempts.items() if number > 1)
    ),
    "events in all streams": lambda each: str(each.events),
    "connections of readers": lambda each: str(each.connections),
    "seconds": lambda each: f"{each.seconds:.0f}",
    "kills": lambda each: str(sum(count for fault, count in each.faults.items() if fault.startswith("kill_"))),
}


def _write(outcomes: dict[str, Outcome], arguments: argparse.Namespace) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"chaos-{time.strftime('%Y-%m-%d')}.json"
    result = {
        "command": "python -m tests.chaos " + " ".join(sys.argv[1:]),
        "settings": vars(arguments),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "runs": {name: _plain(outcome) for name, outcome in outcomes.items()},
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def _plain(outcome: Outcome) -> dict[str, object]:
    values = {each.name: getattr(outcome, each.name) for each in fields(outcome)}
    values["violations"] = [str(violation) for violation in outcome.violations]
    return values


if __name__ == "__main__":
    sys.exit(main())
