"""Show how far the simulator is from the runs that `benchmarks swap` has kept."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.simulation.calibration import GOAL, Cores, compare, fit_pace
from benchmarks.spread import percentile
from benchmarks.swapping.report import OURS, read_report


def show_calibration(path: Path, console: Console) -> int:
    """Each run is replayed with the pace of all the others, or its own if it is alone. The exit code says whether all
    are within the goal."""
    report = read_report(path)
    runs = [run for run in report.runs if run.side == OURS and run.loads] if report is not None else []
    if report is None or not runs:
        raise SystemExit(f"{path} has no run of Keepwarm; make one with `python -m benchmarks swap`")
    cores = Cores(cores=report.machine["cores"], threads=report.terms.setting.threads)
    table = Table(
        title="Simulated and measured, seconds to the first token",
        caption="clairv.: P95 of eviction that knows all arrivals, simulated with the same loads and pace",
    )
    for column in (
        "models",
        "seed",
        "P50",
        "measured",
        "error",
        "P95",
        "measured",
        "error",
        "loads",
        "measured",
        "bound",
    ):
        table.add_column(column, justify="right")
    errors: list[float] = []
    for run in runs:
        others = [each for each in runs if each is not run]
        found = compare(run, fit_pace(others or [run], cores), report.terms.setting.slots, cores)
        p50_error, p95_error = found.errors
        errors += found.errors
        table.add_row(
            *(str(found.rooms), str(found.seed)),
            *(f"{found.simulated_p50_s:.2f}", f"{found.measured_p50_s:.2f}", f"{p50_error:+.0%}"),
            *(f"{found.simulated_p95_s:.2f}", f"{found.measured_p95_s:.2f}", f"{p95_error:+.0%}"),
            *(str(found.simulated_loads), str(found.measured_loads), f"{found.clairvoyant_p95_s:.2f}"),
        )
    console.print(table)
    within = sum(abs(error) <= GOAL for error in errors)
    median = percentile([abs(error) for error in errors], 50)
    console.print(f"{within} of {len(errors)} within {GOAL:.0%}; median of the absolute errors {median:.0%}")
    return 0 if within == len(errors) else 1
