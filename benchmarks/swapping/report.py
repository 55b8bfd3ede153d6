"""Runs of the swap benchmark: what is kept of each, kept as soon as it is over, and what they say together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from benchmarks.spread import percentile
from benchmarks.swapping.open_loop import Answer
from benchmarks.swapping.schedule import Ask, Scale
from benchmarks.swapping.sides import Setting
from benchmarks.swapping.worker_log import LoadSpan

ONE_MODEL, OURS, ROUTER = "one model", "keepwarm", "router"
GOALS = {ONE_MODEL: 0.32, ROUTER: 0.60}  # our P95 over theirs, at most
LEDGER_GOAL = 0.05
MIB = 1024**2


class Loads(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model, as the worker counted and timed them."""

    count: int
    load_s: float  # in all
    bytes: int  # that it takes when it is warm
    file_bytes: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One side, one schedule, one size of memory. Seconds to the first token; bytes."""

    side: str
    rooms: int
    seed: int
    p50_s: float
    p95_s: float
    max_s: float
    warm_p50_s: float | None = None  # of requests that were due after the warm-up
    warm_p95_s: float | None = None
    busy_share: float | None = None  # of all cores, by whatever ran, until the last request was due
    overrun_s: float | None = None  # from the last request's time to the end of the last answer
    loads_per_request: float
    failures: dict[str, int]  # reason → requests
    oom_kills: int | None  # None: no control group
    major_faults: int | None  # pages that had to be read from the disk while somebody waited for them
    peak_bytes: int  # private memory of all model processes
    limit_bytes: int | None  # of the control group
    budget_bytes: int | None = None  # of Keepwarm
    ledger_errors: list[float] = []  # of Keepwarm: ledger / measured - 1, looked at every other second
    loads: dict[str, Loads] = {}  # of Keepwarm, by model
    load_spans: list[LoadSpan] = []  # of Keepwarm
    asks: tuple[Ask, ...] = ()
    answers: list[Answer] = []

    @property
    def key(self) -> tuple[str, int, int]:
        return (self.side, self.rooms, self.seed)

    @property
    def over_budget_bytes(self) -> int:
        return max(0, self.peak_bytes - self.budget_bytes) if self.budget_bytes is not None else 0


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What makes runs comparable. Of the folder with the models it has the name alone."""

    setting: Setting
    scale: Scale
    room_bytes: int
    services_bytes: int | None  # of the limit, beside the rooms; None: no limit
    read_bytes_per_s: int | None = None  # that each side may read from the disk; None: what the disk gives
    warm_up_share: float = 0.0  # of the schedule's time: what is due then is left out of the figures after the warm-up


class Report(msgspec.Struct, frozen=True, kw_only=True):
    machine: dict[str, Any]
    terms: Terms
    runs: list[Run]


def read_report(path: Path) -> Report | None:
    """What an earlier call kept; None when there is nothing, or it is of another version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report, dec_hook=lambda kind, value: kind(value))
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def has_other_asks(runs: Sequence[Run], seed: int, asks: Sequence[Ask]) -> bool:
    """Whether a run of this seed was of other requests, so that it says nothing beside a run of these."""
    return any(run.seed == seed and run.asks != tuple(asks) for run in runs)


def write_report(path: Path, report: Report) -> None:
    """In one step, so that an interruption leaves the runs before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(report, enc_hook=str), indent=1) + b"\n")
    os.replace(unfinished, path)


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to the first token."""

    p50_s: float
    p95_s: float
    max_s: float


def waits(asks: Sequence[Ask], answers: Sequence[Answer], limit_s: float, *, warm_up_share: float) -> Waits:
    """Of requests due after that share (0 to 1) of the schedule's time; a failure has waited for the limit."""
    begins_s = asks[-1].at_s * warm_up_share
    found = [
        answer.first_token_s if answer.first_token_s is not None else limit_s
        for ask, answer in zip(asks, answers, strict=True)
        if ask.at_s >= begins_s
    ]
    return Waits(p50_s=percentile(found, 50), p95_s=percentile(found, 95), max_s=max(found))


def failures(answers: Sequence[Answer]) -> dict[str, int]:
    """How many failed why."""
    return dict(Counter(answer.failure for answer in answers if answer.failure is not None))


def table(runs: Sequence[Run], warm_up_share: float) -> Table:
    result = Table(
        title="Time to the first token, seconds; medians over the schedules",
        caption=f"warm: without the first {warm_up_share:.0%} of each schedule's time, in which most models are loaded "
        "for the first time, on every side; loads: per request; busy: of all cores; MiB: private, at most",
    )
    columns = (
        *("memory", "side", "runs", "P50", "P95", "max", "warm P50", "warm P95"),
        *("loads", "busy", "failed", "OOM", "MiB"),
    )
    for column in columns:
        result.add_column(column, justify="left" if column == "side" else "right")
    for rooms, side in _kinds(runs):
        mine = [run for run in runs if (run.side, run.rooms) == (side, rooms)]
        result.add_row(
            str(rooms),
            side,
            str(len(mine)),
            *(_median(mine, name, ".2f") for name in ("p50_s", "p95_s", "max_s", "warm_p50_s", "warm_p95_s")),
            _median(mine, "loads_per_request", ".2f"),
            _median(mine, "busy_share", ".0%"),
            str(sum(sum(run.failures.values()) for run in mine)),
            str(sum(run.oom_kills or 0 for run in mine)),
            f"{max(run.peak_bytes for run in mine) / MIB:.0f}",
        )
    return result


def ratio_lines(runs: Sequence[Run]) -> list[str]:
    """Our P95 over that of each other side, beside the goal."""
    return [
        f"memory for {rooms}, P95 over {side}: all requests {_worded(ratios(side, rooms, runs))}, "
        f"warm {_worded(ratios(side, rooms, runs, 'warm_p95_s'))} (goal {GOALS[side]:.2f})"
        for rooms, side in _kinds(runs)
        if side in GOALS
    ]


def _kinds(runs: Sequence[Run]) -> list[tuple[int, str]]:
    return list(dict.fromkeys((run.rooms, run.side) for run in sorted(runs, key=lambda run: run.rooms)))


def _median(runs: Sequence[Run], name: str, form: str) -> str:
    known = [value for run in runs if (value := getattr(run, name)) is not None]
    return format(percentile(known, 50), form) if known else ""


def ratios(side: str, rooms: int, runs: Sequence[Run], name: str = "p95_s") -> list[float]:
    """Our figure over the side's, schedule by schedule."""
    if side == OURS:
        return []
    ours = {run.seed: getattr(run, name) for run in runs if (run.side, run.rooms) == (OURS, rooms)}
    theirs = {run.seed: getattr(run, name) for run in runs if (run.side, run.rooms) == (side, rooms)}
    return [ours[seed] / theirs[seed] for seed in theirs if ours.get(seed) is not None and theirs[seed]]


def _worded(found: list[float]) -> str:
    if not found:
        return "unknown"
    return f"{percentile(found, 50):.2f}" + (f" [{min(found):.2f}, {max(found):.2f}]" if len(found) > 1 else "")


def ledger_line(runs: Sequence[Run]) -> str:
    errors = [error for run in runs if run.side == OURS for error in run.ledger_errors]
    if not errors:
        return "The ledger was not held against anything."
    over = max(run.over_budget_bytes for run in runs if run.side == OURS)
    within = sum(abs(error) <= LEDGER_GOAL for error in errors) / len(errors)
    return (
        f"Ledger / measured - 1: median {percentile(errors, 50):+.1%}, from {min(errors):+.1%} to {max(errors):+.1%}, "
        f"{within:.0%} of {len(errors)} looks within {LEDGER_GOAL:.0%}; "
        f"{over / MIB:.0f} MiB of private memory over the budget at most"
    )


def line(run: Run) -> str:
    of_budget = f" of {run.budget_bytes / MIB:.0f}" if run.budget_bytes is not None else ""
    return (
        f"{run.side}, {run.rooms}, seed {run.seed}: "
        f"P50 {run.p50_s:.2f} s, P95 {run.p95_s:.2f} s, max {run.max_s:.2f} s, "
        + (f"warm P95 {run.warm_p95_s:.2f} s, " if run.warm_p95_s is not None else "")
        + (
            f"busy {run.busy_share:.0%}, {run.overrun_s:.0f} s behind at the end, "
            if run.busy_share is not None
            else ""
        )
        + f"{run.loads_per_request:.2f} loads per request, peak {run.peak_bytes / MIB:.0f}{of_budget} MiB"
        + (f", {run.oom_kills} KILLED for want of memory" if run.oom_kills else "")
        + (f", FAILED {run.failures}" if run.failures else "")
    )
