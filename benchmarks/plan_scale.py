"""Planning time: one incremental decision for fleets of 10 to 1 000 workers, each with ten times as many models.

Between two calls one worker in a hundred (at least one) sends a new heartbeat, a fifth as many models as workers have
waiting jobs, and two absent ones have to be placed. Everything else is the same object as before, as `FleetStore`
gives it. Also timed: the first call of a new leader, which has no memo. Goal: p99 of 100 ms for 1 000 workers and
10 000 models. It is CPU time of the deciding thread, so that what else runs on the machine does not count.
"""

from __future__ import annotations

import argparse
import random
import time

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from benchmarks.simulation.chart import Panel, Point, line_chart
from benchmarks.spread import percentile
from tasks.controller.demand import Demand
from tasks.controller.fleet_view import Memo
from tasks.controller.plan import plan
from tasks.controller.policy_state import PolicyState
from tasks.fleet import (
    ClassBacklog,
    Fleet,
    ModelOffer,
    Placement,
    QueueReport,
    RunnerReport,
    RunnerState,
    WorkerPlacement,
    WorkerReport,
)
from tasks.jobs import WorkerId

SIZES = (10, 30, 100, 300, 1000)
MODELS_PER_WORKER = 10
RESIDENTS = 10
GIB = 2**30
GOAL_MS = 100.0


class Series(msgspec.Struct, frozen=True, kw_only=True):
    workers: int
    models: int
    first_ms: float  # without a memo
    times_ms: list[float]


class Scene:
    """A full fleet with a random placement; `step` changes what a tick would see changed."""

    def __init__(self, workers: int, rng: random.Random) -> None:
        self.rng = rng
        self.now_ms = 10_000_000
        self.offers = tuple(
            ModelOffer(
                id=f"m{number:05d}", context_length=4096, slots=4, bytes=rng.randint(2, 16) * GIB,
                load_ms=rng.randint(1_000, 9_000), max_replicas=3,
            )
            for number in range(workers * MODELS_PER_WORKER)
        )  # fmt: skip
        self.reports = [self._worker(f"w{number:04d}") for number in range(workers)]
        hold = {report.id: tuple(sorted(runner.model for runner in report.runners)) for report in self.reports}
        self.placement = Placement(
            epoch=1, workers={str(name): WorkerPlacement(hold=held) for name, held in hold.items()}
        )
        self.state = PolicyState()
        self.memo = Memo()

    def _worker(self, name: str) -> WorkerReport:
        residents = self.rng.sample(self.offers, RESIDENTS)
        runners = tuple(self._runner(offer) for offer in residents)
        return WorkerReport(
            id=WorkerId(name), pid=1, host=name, device="cuda:0", started_ms=0, offers=self.offers, runners=runners,
            budget_bytes=sum(offer.bytes for offer in residents) + GIB, used_bytes=0,
        )  # fmt: skip

    def _runner(self, offer: ModelOffer) -> RunnerReport:
        in_flight = self.rng.choice((0, 0, 1, 4))
        idle_ms = None if in_flight else self.now_ms - self.rng.randint(0, 300_000)
        return RunnerReport(
            pid=1, model=offer.id, state=RunnerState.READY, bytes=offer.bytes, slots=4, in_flight=in_flight,
            since_ms=self.now_ms - 600_000, idle_since_ms=idle_ms,
        )  # fmt: skip

    def step(self, *, has_memo: bool = True) -> float:
        """One tick; the milliseconds of CPU that the plan took."""
        self.now_ms += 500
        by_id = {offer.id: offer for offer in self.offers}
        for index in self.rng.sample(range(len(self.reports)), max(1, len(self.reports) // 100)):
            report = self.reports[index]
            desired = self.placement.workers[report.id]
            runners = tuple(self._runner(by_id[model]) for model in desired.hold)
            self.reports[index] = msgspec.structs.replace(report, runners=runners)
        held = sorted({model for each in self.placement.workers.values() for model in each.hold})
        absent = sorted(set(by_id) - set(held))
        waiting = self.rng.sample(held, min(len(held), 2 * len(self.reports) // 10 + 1))
        waiting += self.rng.sample(absent, min(2, len(absent)))
        demand = Demand(
            queues=tuple(_queue(model, self.rng) for model in sorted(waiting)),
            arrivals={(model, 0): 1 for model in waiting},
            service_ms=dict.fromkeys(by_id, 4000.0),
        )
        fleet = Fleet(now_ms=self.now_ms, workers=tuple(self.reports))
        memo = self.memo if has_memo else None
        started = time.thread_time()
        decided = plan(demand=demand, fleet=fleet, placement=self.placement, state=self.state, memo=memo)
        took_ms = (time.thread_time() - started) * 1000
        self.state, self.placement = decided.state, decided.placement
        return took_ms


def _queue(model: str, rng: random.Random) -> QueueReport:
    depth, age_ms = rng.randint(1, 9), rng.randint(0, 15_000)
    classes = (ClassBacklog(priority=0, depth=depth, oldest_age_ms=age_ms),)
    return QueueReport(model=model, depth=depth, oldest_age_ms=age_ms, classes=classes)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks plan_scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="timed decisions per size")
    options = parser.parse_args(arguments)
    console = Console()
    series = []
    for workers in SIZES:
        scene = Scene(workers, random.Random(workers))
        first_ms = scene.step(has_memo=False)
        scene.step()
        times = [
            scene.step() for _ in track(range(options.steps), f"{workers} workers", console=console, transient=True)
        ]
        series.append(Series(workers=workers, models=len(scene.offers), first_ms=first_ms, times_ms=times))
    table = Table(title="CPU milliseconds for one plan")
    for column in ("workers", "models", "first", "median", "p99", "worst"):
        table.add_column(column, justify="right")
    for each in series:
        figures = (each.first_ms, *(percentile(each.times_ms, percent) for percent in (50, 99, 100)))
        table.add_row(str(each.workers), str(each.models), *(f"{value:.2f}" for value in figures))
    console.print(table)
    _keep(series, arguments, console)
    return 0 if percentile(series[-1].times_ms, 99) <= GOAL_MS else 1


def _keep(series: list[Series], arguments: list[str], console: Console) -> None:
    command = f"python -m benchmarks plan_scale {' '.join(arguments)}".strip()
    path = machine.result_path("plan-scale")
    path.parent.mkdir(exist_ok=True)
    report = {"command": command, "machine": machine.description(), "goal_p99_ms": GOAL_MS, "series": series}
    path.write_bytes(msgspec.json.encode(report) + b"\n")
    lines = {
        name: [_point(each.workers, percentile(each.times_ms, percent)) for each in series]
        for name, percent in (("p99", 99.0), ("median", 50.0))
    }
    lines["first call, no memo"] = [_point(each.workers, each.first_ms) for each in series]
    chart = line_chart(
        "CPU time of one plan", "workers, each with ten times as many models", "ms", [Panel("incremental", lines)],
        footer=command,
    )  # fmt: skip
    path.with_suffix(".svg").write_text(chart, encoding="utf-8")
    console.print(f"kept in {path} and {path.with_suffix('.svg').name}")


def _point(x: float, y: float) -> Point:
    return Point(x, y, y, y)
