"""What is kept of the queue benchmark. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.spread import Estimate, estimate, percentile

BACKGROUND = "controller"  # works by the clock, not by the job
GOAL = 0.6  # of the jobs per second of bare Celery

_NONE_OF_THEM = "no HTTP, no stream of results, no resume of either, no placement of models, no bound on admission"
LACKS = {
    "celery": f"{_NONE_OF_THEM}; as set up here a message whose worker dies is lost",
    "dramatiq": f"{_NONE_OF_THEM}; it acknowledges late and would run a job again",
    "rq": f"{_NONE_OF_THEM}; one job at a time, no job after its worker's death without a cleaning run",
    "arq": f"{_NONE_OF_THEM}; a job whose worker dies runs again after a time-out",
    "saq": f"{_NONE_OF_THEM}; a job whose worker dies is swept after a time-out",
    "taskiq": f"{_NONE_OF_THEM}; a list without acknowledgement: a message whose worker dies is lost",
}


class Round(msgspec.Struct, frozen=True, kw_only=True):
    jobs_per_s: float
    cpu_us: dict[str, float]  # per job, by process

    @property
    def cpu_us_in_all(self) -> float:
        return sum(us for name, us in self.cpu_us.items() if name != BACKGROUND)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    jobs_per_s: Estimate
    keepwarm_ratio: Estimate | None  # jobs per second of Keepwarm through this one's, round by round; None: Keepwarm
    cpu_us: Estimate  # per job, all processes but those that follow the clock
    cpu_us_by_process: dict[str, float]  # medians


class Report(msgspec.Struct, frozen=True, kw_only=True):
    command: str
    machine: dict[str, object]
    jobs: int  # per round
    rounds: int
    payload_bytes: int
    in_flight: int
    goal: float
    rows: list[Row]
    lacks: dict[str, str]
    missing: dict[str, str]  # peers that could not be measured, and why


def summarise(measured: Mapping[str, Sequence[Round]], names: Sequence[str]) -> list[Row]:
    """Keepwarm first. A peer's n-th round is compared with Keepwarm's n-th."""
    ours = measured["keepwarm"]
    return [_row(name, measured[name], ours) for name in names]


def _row(name: str, rounds: Sequence[Round], ours: Sequence[Round]) -> Row:
    ratios = [our.jobs_per_s / their.jobs_per_s for our, their in zip(ours, rounds, strict=True)]
    return Row(
        name=name,
        jobs_per_s=estimate([each.jobs_per_s for each in rounds]),
        keepwarm_ratio=None if name == "keepwarm" else estimate(ratios),
        cpu_us=estimate([each.cpu_us_in_all for each in rounds]),
        cpu_us_by_process={
            process: percentile([each.cpu_us[process] for each in rounds], 50) for process in rounds[0].cpu_us
        },
    )
