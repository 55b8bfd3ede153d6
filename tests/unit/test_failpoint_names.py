"""Failpoints are named exactly, and nothing else is accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks.errors import InvalidSetting
from tasks.failpoints import FAILPOINTS, failpoint, is_armed, parse

PROJECT = Path(__file__).parents[2]


def test_points_are_parsed_with_their_counts():
    assert parse("") == {}
    assert parse("after_claim=kill:1, before_step=kill:20") == {"after_claim": 1, "before_step": 20}


@pytest.mark.parametrize("value", ["after_claim", "after_claim=kill:0", "after_claim=exit:1", "after_claim=kill:1;x"])
def test_anything_else_is_refused(value: str):
    with pytest.raises(InvalidSetting, match="KEEPWARM_FAILPOINTS: write POINT=kill:TIMES"):
        parse(value)


def test_unknown_point_is_refused_with_the_known_ones():
    with pytest.raises(InvalidSetting, match=r"no point 'after_all'; known are after_admit, .*after_step"):
        parse("after_all=kill:1")


def test_nothing_happens_unless_armed():
    assert not is_armed()
    for name in FAILPOINTS:
        failpoint(name)


def test_table_lists_the_points_of_the_code_and_no_others():
    used: set[str] = set()
    for package in ("app", "tasks", "workers"):
        for path in (PROJECT / package).rglob("*.py"):
            for call in re.findall(r"\bfailpoint\(([^)]*)\)", path.read_text()):
                used.update(re.findall(r'"(\w+)"', call))
    assert used == set(FAILPOINTS)
