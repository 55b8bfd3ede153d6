"""Runs of the swap benchmark that are kept and gone on with."""

from __future__ import annotations

from pathlib import Path

from benchmarks.swapping.report import Report, Run, Terms, has_other_asks, read_report, write_report
from benchmarks.swapping.schedule import Ask, Scale, zipf_schedule
from benchmarks.swapping.sides import Setting

SCALE = Scale(rate_per_s=0.5, num_requests=5, length_divisor=16)


def run_of(asks: tuple[Ask, ...], *, seed: int) -> Run:
    return Run(
        side="keepwarm", rooms=3, seed=seed, p50_s=1, p95_s=2, max_s=3, loads_per_request=0.5, failures={},
        oom_kills=None, major_faults=None, peak_bytes=1, limit_bytes=None, asks=asks,
    )  # fmt: skip


def test_runs_are_only_gone_on_with_for_the_requests_that_they_had(tmp_path: Path) -> None:
    asks = zipf_schedule(["a", "b", "c"], SCALE, seed=1)
    setting = Setting(models=tmp_path, threads=2, slots=4, context_length=1024, kv_type="f16")
    terms = Terms(setting=setting, scale=SCALE, room_bytes=1, services_bytes=None)
    write_report(tmp_path / "swap.json", Report(machine={}, terms=terms, runs=[run_of(asks, seed=1)]))
    kept = read_report(tmp_path / "swap.json")
    assert kept is not None
    assert kept.terms == terms
    assert not has_other_asks(kept.runs, 1, zipf_schedule(["a", "b", "c"], SCALE, seed=1))
    assert has_other_asks(kept.runs, 1, zipf_schedule(["a", "b", "d"], SCALE, seed=1))
    assert not has_other_asks(kept.runs, 2, zipf_schedule(["a", "b", "c"], SCALE, seed=2))
