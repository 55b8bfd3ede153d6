"""Results of the comparison with llama-server: medians, ratios, goals, and the file that they are kept in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from benchmarks import machine
from benchmarks.engine_workloads import Figures, Goal
from benchmarks.spread import Estimate, estimate, percentile
from workers.model_files import ModelFile


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of one figure; `ratio` is of the pairs, ours over theirs."""

    ours: float
    theirs: float
    ratio: Estimate


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One workload."""

    workload: str
    goal: Goal
    is_met: bool
    pairs: int
    figures: dict[str, Comparison]  # those that both sides have
    others: dict[str, float]  # medians of those that only one has: CPU time by process
    command: str
    settings: dict[str, object]
    load_average: float  # of the machine afterwards: high when others used it, too

    @property
    def ratio(self) -> Estimate:
        return self.figures[self.goal.figure].ratio


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of one model."""

    machine: dict[str, object]
    model: dict[str, object]
    rows: tuple[Row, ...] = ()

    @classmethod
    def kept_in(cls, path: Path, model: ModelFile) -> Report:
        """What is there already, measured on the machine as it is now."""
        rows = msgspec.json.decode(path.read_bytes(), type=Report).rows if path.exists() else ()
        about: dict[str, object] = {
            "id": model.id,
            "description": model.description,
            "file_bytes": model.file_bytes,
            "context_length": model.context_length,
        }
        return cls(machine=machine.description(), model=about, rows=rows)

    def with_row(self, row: Row) -> Report:
        """A newer row of the same workload replaces the older one."""
        others = tuple(each for each in self.rows if each.workload != row.workload)
        return msgspec.structs.replace(self, rows=tuple(sorted((*others, row), key=_order)))

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def _order(row: Row) -> tuple[bool, int, str]:
    name, _, number = row.workload.partition("-")
    return (not number.isdigit(), int(number) if number.isdigit() else 0, name)


def summarise(
    workload: str,
    goal: Goal,
    pairs: Sequence[tuple[Figures, Figures]],
    arguments: Sequence[str],
    settings: dict[str, object],
) -> Row:
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    shared = [name for name in ours[0] if name in theirs[0]]
    figures = {
        name: Comparison(
            ours=percentile([each[name] for each in ours], 50),
            theirs=percentile([each[name] for each in theirs], 50),
            ratio=estimate([our[name] / their[name] for our, their in pairs]),
        )
        for name in shared
    }
    others = {
        name: percentile([each[name] for each in side], 50)
        for side in (ours, theirs)
        for name in side[0]
        if name not in shared
    }
    return Row(
        workload=workload,
        goal=goal,
        is_met=goal.is_met(figures[goal.figure].ratio.median),
        pairs=len(pairs),
        figures=figures,
        others=others,
        command=f"python -m benchmarks engine {' '.join(arguments)}".strip(),
        settings=settings,
        load_average=round(os.getloadavg()[0], 2),
    )


def table(rows: Sequence[Row], title: str) -> Table:
    table = Table(title=title, caption="in brackets: 95 % confidence interval of the median", caption_justify="left")
    for column in ("workload", "figure", "keepwarm", "llama.cpp", "ratio", "goal"):
        table.add_column(column, justify="left" if column in {"workload", "figure"} else "right", no_wrap=True)
    for row in rows:
        for name, figure in row.figures.items():
            is_goal = name == row.goal.figure
            goal = f"{row.goal.worded()} {'met' if row.is_met else 'MISSED'}" if is_goal else ""
            first = row.workload if name == next(iter(row.figures)) else ""
            table.add_row(first, name, f"{figure.ours:.1f}", f"{figure.theirs:.1f}", figure.ratio.worded(2), goal)
        for name, value in row.others.items():
            table.add_row("", f"[dim]{name}", f"[dim]{value:.0f}", "", "", "")
        table.add_section()
    return table
