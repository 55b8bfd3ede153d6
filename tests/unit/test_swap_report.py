"""Runs of the swap benchmark that are kept and gone on with."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.swapping.open_loop import Answer
from benchmarks.swapping.report import (
    Report,
    Run,
    Terms,
    failures,
    has_other_asks,
    ratio_lines,
    ratios,
    read_report,
    waits,
    write_report,
)
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


def asks_and_answers(*waited: float | None) -> tuple[list[Ask], list[Answer]]:
    """One request per second; None is a failure."""
    asks = [Ask(at_s=float(number), model="a", prompt_tokens=4, num_tokens=2) for number in range(len(waited))]
    answers = [
        Answer(model="a", first_token_s=each, total_s=9.0, failure=None if each is not None else "broken")
        for each in waited
    ]
    return asks, answers


def test_figures_after_the_warm_up_leave_out_what_was_due_before() -> None:
    asks, answers = asks_and_answers(9.0, 8.0, 1.0, 1.0, 3.0)
    every = waits(asks, answers, 60.0, warm_up_share=0.0)
    warm = waits(asks, answers, 60.0, warm_up_share=0.5)
    assert (every.p50_s, every.max_s) == (3.0, 9.0)
    assert (warm.p50_s, warm.max_s) == (1.0, 3.0)


def test_a_failure_counts_as_having_waited_for_the_limit() -> None:
    asks, answers = asks_and_answers(1.0, None, None)
    found = waits(asks, answers, 60.0, warm_up_share=0.0)
    assert found.p50_s == 60.0
    assert failures(answers) == {"broken": 2}


def test_ratios_pair_the_runs_of_a_schedule_and_skip_what_has_no_such_figure() -> None:
    def run(side: str, seed: int, p95_s: float, warm_p95_s: float | None = None) -> Run:
        return msgspec.structs.replace(run_of((), seed=seed), side=side, p95_s=p95_s, warm_p95_s=warm_p95_s)

    runs = [run("keepwarm", 0, 1.0, 1.0), run("keepwarm", 1, 3.0), run("router", 0, 2.0, 4.0), run("router", 1, 3.0)]
    assert ratios("router", 3, runs) == [0.5, 1.0]
    assert ratios("router", 3, runs, "warm_p95_s") == [0.25]
    assert ratios("keepwarm", 3, runs) == []
    assert ratio_lines(runs) == [
        "memory for 3, P95 over router: all requests 0.75 [0.50, 1.00], warm 0.25 (goal 0.60)",
    ]
