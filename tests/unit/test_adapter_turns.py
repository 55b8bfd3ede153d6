"""Turns of adapters in one runner, with steps of 5 ms."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.adapter_turns import AdapterTurns

STEP_S = 0.005


@given(stays=st.lists(st.sets(st.sampled_from("abcde")), min_size=1, max_size=60), num_rounds=st.integers(1, 8))
def test_an_adapter_that_stays_is_passed_over_no_more_often_than_there_are_others(
    stays: list[set[str]], num_rounds: int
) -> None:
    turns, chosen = AdapterTurns(), []
    for step, others in enumerate(stays * num_rounds):
        chosen.append(turns.choose(others | {"x"}, step * STEP_S))
    passed_over, before = 0, "x"
    for each in chosen:
        passed_over = 0 if each == "x" else passed_over + (each != before)
        assert passed_over <= len("abcde")
        before = each


def test_jobs_that_come_and_go_under_two_adapters_leave_a_third_its_turns() -> None:
    turns, chosen, away = AdapterTurns(), [], None
    for step in range(300):
        current = turns.choose({"a", "b", "x"} - {away}, step * STEP_S)
        away = current if current != "x" else None  # its job is done, and the next one comes a step later
        chosen.append(current)
    assert chosen.count("x") >= 100
