"""Threads with room for texts on which a tokeniser recurses, and the texts that none has room for."""

from __future__ import annotations

import threading

import pytest

from tasks.errors import InvalidRequest
from workers.engine.stack_room import ANYWHERE, LONGEST_RUN, with_room_for

TOO_LONG = 2 * LONGEST_RUN + 2


def test_short_text_stays_in_its_thread_and_a_long_one_gets_its_own():
    assert with_room_for("a" * ANYWHERE, threading.current_thread) is threading.current_thread()
    assert with_room_for("a" * (ANYWHERE + 1), threading.current_thread) is not threading.current_thread()


def test_threads_that_others_start_have_the_usual_stack():
    before = threading.stack_size()
    with_room_for("a" * LONGEST_RUN, lambda: None)
    assert threading.stack_size() == before


def test_error_of_the_work_is_raised_where_it_was_asked_for():
    with pytest.raises(ZeroDivisionError):
        with_room_for("a" * LONGEST_RUN, lambda: 1 // 0)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        " ",
        "中",
        "\x1c1",  # white space to Python alone
        " \xa0",  # white space, by other rules than ASCII's
        "some words ",
        "/\n",
    ],
)
def test_run_that_no_stack_has_room_for_is_refused(text: str):
    text *= TOO_LONG // len(text) + 1
    with pytest.raises(InvalidRequest, match=f"at most {LONGEST_RUN}"):
        with_room_for(text, lambda: None)


@pytest.mark.parametrize("text", ["It has a full stop. ", "und,Zeichen;ohne:Leerraum\n", "中文。\n", "line\n", "a/b\n"])
def test_text_as_people_write_it_may_be_of_any_length(text: str):
    text *= TOO_LONG // len(text) + 1
    assert with_room_for(text, lambda: "done") == "done"
