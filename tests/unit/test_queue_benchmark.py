"""What the queue benchmark makes of its rounds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.queue_peers import tally
from benchmarks.queue_plot import plot
from benchmarks.queue_report import GOAL, LACKS, Report, Round, summarise


def a_round(jobs_per_s: float, **cpu_us: float) -> Round:
    return Round(jobs_per_s=jobs_per_s, cpu_us=cpu_us)


def measured() -> dict[str, list[Round]]:
    return {
        "keepwarm": [a_round(50, api=10, controller=7), a_round(80, api=30, controller=7)],
        "celery": [a_round(100, worker=5), a_round(100, worker=7)],
    }


def test_a_ratio_is_of_two_rounds_that_follow_each_other() -> None:
    ours, celery = summarise(measured(), ["keepwarm", "celery"])
    assert ours.keepwarm_ratio is None
    assert celery.keepwarm_ratio is not None
    assert celery.keepwarm_ratio.median == pytest.approx(0.65)


def test_what_follows_the_clock_is_shown_and_not_added() -> None:
    ours, _ = summarise(measured(), ["keepwarm", "celery"])
    assert (ours.cpu_us.median, ours.cpu_us_by_process) == (20, {"api": 20, "controller": 7})


def test_payloads_have_one_size_and_name_their_round() -> None:
    texts = [tally.text("r1", index, 1000, 256) for index in (0, 999)]
    assert [len(text) for text in texts] == [256, 256]
    assert texts[1].startswith("r1:1000:999:")


def test_the_plot_shows_every_row(tmp_path: Path) -> None:
    rows = summarise(measured(), ["keepwarm", "celery"])
    report = Report(
        command="x",
        machine={},
        jobs=10,
        rounds=2,
        payload_bytes=256,
        in_flight=32,
        goal=GOAL,
        rows=rows,
        lacks=LACKS,
        missing={},
    )
    (tmp_path / "queue-2026-01-01-x.json").write_bytes(msgspec.json.encode(report))
    plot(tmp_path, tmp_path / "queue.svg")
    drawn = (tmp_path / "queue.svg").read_text()
    assert all(f">{row.name}<" in drawn for row in rows)
    assert drawn.count("<rect") == 1 + 2 * len(rows)
