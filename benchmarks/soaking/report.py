"""What a soak has found: the figures, the verdict, and how both are shown and kept."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.soaking.flatness import Growth, Sample
from benchmarks.soaking.memory_chart import memory_chart
from benchmarks.soaking.watch import PoolUse
from benchmarks.swapping.schedule import Scale
from benchmarks.swapping.sides import Setting

MIB = 1024**2


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes, and seconds to the first token."""

    machine: dict[str, object]
    command: str
    setting: Setting
    scale: Scale
    num_models: int
    weight_bytes: int
    limit_bytes: int | None  # of the control group; None: it went without
    budget_bytes: int  # of the worker
    p50_s: float
    p95_s: float
    max_s: float
    requests: int
    failures: dict[str, int]  # reason → requests
    oom_kills: int | None
    deaths: list[str]  # processes that should have stayed
    broken_attempts: float
    loads_per_request: float
    mean_load_s: float
    evictions: float
    peak_ledger_bytes: int
    peak_private_bytes: int | None  # of all processes together
    growth: list[Growth]
    pool: list[PoolUse]
    samples: list[Sample]

    @property
    def complaints(self) -> list[str]:
        """Goals that were missed."""
        flat = [f"{each.process} grows" for each in self.growth if each.is_flat is False]
        checks = (
            (bool(self.failures), f"{sum(self.failures.values())} requests failed"),
            (bool(self.oom_kills), f"{self.oom_kills} processes were killed for want of memory"),
            (bool(self.deaths), f"{', '.join(self.deaths)} ended"),
            (self.peak_ledger_bytes > self.budget_bytes, "the ledger exceeded its budget"),
        )
        return [text for is_missed, text in checks if is_missed] + flat


def show(report: Report, console: Console) -> None:
    table = Table("PROCESS", "PRIVATE", "GROWTH", "PER HOUR", "RSS", "PSS", "FDS", "THREADS", "FLAT")
    for each in report.growth:
        table.add_row(
            each.process,
            f"{each.last.private_bytes / MIB:.1f} MiB",
            f"{each.private_bytes / MIB:+.2f} MiB",
            f"{each.private_bytes_per_h / MIB:+.1f} MiB",
            f"{each.last.rss_bytes / MIB:.1f} MiB",
            f"{each.last.pss_bytes / MIB:.1f} MiB",
            f"{each.last.descriptors} ({each.descriptors:+d})",
            f"{each.last.threads} ({each.threads:+d})",
            {True: "yes", False: "NO", None: "too short to tell"}[each.is_flat],
        )
    console.print(table)
    of_limit = ""
    if report.limit_bytes is not None and report.peak_private_bytes is not None:
        of_limit = f"; private memory peaks at {report.peak_private_bytes / MIB:.0f} of {report.limit_bytes / MIB:.0f}"
    console.print(
        f"{report.requests} requests: P50 {report.p50_s:.2f} s, P95 {report.p95_s:.2f} s, max {report.max_s:.2f} s; "
        f"{sum(report.failures.values())} failed {report.failures or ''}\n"
        f"{report.loads_per_request:.2f} loads per request of {report.mean_load_s:.1f} s each, "
        f"{report.evictions:.0f} evictions, {report.broken_attempts:.0f} broken attempts, "
        f"{report.oom_kills} killed for want of memory\n"
        f"the ledger peaks at {report.peak_ledger_bytes / MIB:.0f} of {report.budget_bytes / MIB:.0f} MiB{of_limit} MiB"
    )
    for complaint in report.complaints:
        console.print(f"MISSED: {complaint}", style="bold red")


def keep(report: Report, path: Path, console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(report, enc_hook=lambda each: each.name) + b"\n")
    minutes = report.scale.num_requests / report.scale.rate_per_s / 60
    title = f"{report.num_models} models, {report.weight_bytes / MIB:.0f} MiB of weights, {minutes:.0f} minutes"
    chart = memory_chart(title, report.pool, report.samples, report.limit_bytes)
    path.with_suffix(".svg").write_text(chart, encoding="utf-8")
    console.print(f"kept in {path} and {path.with_suffix('.svg').name}")
