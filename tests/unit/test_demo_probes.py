"""The questions that measure the demo model, and what counts as right."""

from __future__ import annotations

import pytest

from tools.demo_model import probes

BY_QUESTION = {probe.question: probe for probe in probes.probes()}


def test_every_run_asks_the_same_questions():
    assert [(probe.group, probe.question) for probe in probes.probes()] == [
        (probe.group, probe.question) for probe in probes.probes()
    ]


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("1, 2, 3, 4, 5.", True),
        ("From 1 to 5: 1, 2, 3, 4, 5.", True),
        ("1, 2, 3, 4, 5, 6.", False),
        ("1, 2, 4, 5.", False),
    ],
)
def test_counting_is_right_only_with_every_number_and_the_right_end(answer: str, is_right: bool):
    assert BY_QUESTION["Count to five."].is_right(answer) is is_right


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("Here are three colours: red, green and blue.", True),
        ("Here are three colours:\n- red\n- green\n- blue", True),
        ("Here are three colours: blue, blue and blue.", False),
        ("Here are three colours: red and green.", False),
        ("Here are three colours: red, green and fox.", False),
    ],
)
def test_list_is_right_only_with_as_many_different_members_as_asked(answer: str, is_right: bool):
    assert probes.lists_members(["red", "green", "blue", "grey"], 3)(answer) is is_right


def test_sum_is_right_only_with_its_own_numbers():
    question = next(each for each in BY_QUESTION.values() if each.group.startswith("two digits +"))
    assert not question.is_right("1 plus 1 is 2.")


def test_corpus_does_not_make_the_questions_that_measure_unusual_wordings():
    assert probes.questions_in_corpus(2000) == []
