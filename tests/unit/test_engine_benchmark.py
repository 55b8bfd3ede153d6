"""The comparison with llama-server: what a ratio means, when a goal is met, how results of several calls add up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.engine_plot import plot
from benchmarks.engine_report import Report, Row, summarise
from benchmarks.engine_workloads import FIRST_P50, TOKENS_PER_S, Figures, Goal
from benchmarks.load import story
from tools.random_gguf.writing import filler_tokens

FASTER = Goal(figure=TOKENS_PER_S, ratio=1.0)
SOONER = Goal(figure=FIRST_P50, ratio=0.5)


def row(workload: str, pairs: list[tuple[Figures, Figures]], goal: Goal = FASTER) -> Row:
    return summarise(workload, goal, pairs, ["--pairs", "3"], {})


def test_the_ratio_is_the_median_over_pairs_and_not_of_the_medians():
    pairs: list[tuple[Figures, Figures]] = [
        ({TOKENS_PER_S: ours}, {TOKENS_PER_S: theirs}) for ours, theirs in ((100, 50), (10, 10), (30, 60))
    ]
    figure = row("clients-1", pairs).figures[TOKENS_PER_S]
    assert (figure.ours, figure.theirs, figure.ratio.median) == (30, 50, 1.0)
    assert (figure.ratio.low, figure.ratio.high) == (0.5, 2.0)


@pytest.mark.parametrize(("goal", "ratio", "is_met"), [(FASTER, 0.9, False), (FASTER, 1.1, True), (SOONER, 0.4, True)])
def test_more_tokens_and_less_waiting_meet_a_goal(goal: Goal, ratio: float, is_met: bool):
    assert row("clients-1", [({goal.figure: ratio}, {goal.figure: 1.0})] * 3, goal).is_met is is_met
    assert goal.is_met(goal.ratio)


def test_figures_of_one_side_only_are_kept_apart():
    measured = row("clients-1", [({TOKENS_PER_S: 1, "cpu of api": 5}, {TOKENS_PER_S: 1, "cpu of llama-server": 7})])
    assert measured.figures.keys() == {TOKENS_PER_S}
    assert measured.others == {"cpu of api": 5, "cpu of llama-server": 7}


def test_a_newer_row_replaces_the_older_one_and_the_file_keeps_all(tmp_path: Path):
    pairs: list[tuple[Figures, Figures]] = [({TOKENS_PER_S: 2.0}, {TOKENS_PER_S: 1.0})]
    report = Report(machine={}, model={"id": "tiny", "description": "llama", "file_bytes": 1})
    for name in ("json-schema", "clients-16", "clients-4", "clients-16"):
        report = report.with_row(row(name, pairs))
    report.write(tmp_path / "engine-tiny-2026-01-01.json")
    kept = msgspec.json.decode((tmp_path / "engine-tiny-2026-01-01.json").read_bytes(), type=Report)
    assert [each.workload for each in kept.rows] == ["clients-4", "clients-16", "json-schema"]
    plot(tmp_path, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("<circle") == 3


def test_stories_of_two_numbers_differ_from_their_first_word_on():
    assert story(1, 50).split()[0] != story(2, 50).split()[0]


def test_filler_tokens_are_new_words_each_of_its_own():
    fillers = filler_tokens({"Ġaaaa"}, 1000)
    assert len(set(fillers)) == 1000
    assert "Ġaaaa" not in fillers
