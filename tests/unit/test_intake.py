"""Who prepares a request: the thread that reads the socket when that is quick, else the one made for it."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from tasks.encoding import EncodingRequest
from tasks.generation import AnswerFormat, ChatMessage, GenerationRequest, Tool
from tasks.jobs import Priority
from workers.engine.base import Prepared
from workers.messages import Cancel, Encode, FromRunner, Generate, OpenSlots, Shutdown
from workers.runner_process import QUICK_CHARS, QUICK_MESSAGES, Intake, Request, Work, is_quickly_prepared


class Made:
    prompt_tokens = 3

    def __init__(self, key: int) -> None:
        self.key = key


def generate(key: int = 1, text: str = "hello", **fields: Any) -> Generate:
    messages = (ChatMessage(role="user", content=text),)
    return Generate(key=key, request=GenerationRequest(model="m", messages=messages, **fields))


@pytest.mark.parametrize(
    "message",
    [
        generate(text="x" * (QUICK_CHARS + 1)),
        generate(answer_format=AnswerFormat(kind="gbnf", text="root ::= [0-9]")),
        generate(tools=(Tool(name="f", definition="{}", parameters="{}"),)),
        Generate(key=1, request=GenerationRequest(model="m", prompt="x"), forced_ids=(1,), emitted_text="a"),
        Generate(
            key=1,
            request=GenerationRequest(model="m", messages=(ChatMessage(role="user", content="x"),) * QUICK_MESSAGES),
        ),
        Encode(key=1, request=EncodingRequest(model="m", texts=("x",))),
    ],
)
def test_long_work_is_left_to_its_own_thread(message: Request):
    assert not is_quickly_prepared(message)


def test_short_prompt_is_prepared_by_who_brings_it_but_not_beside_another():
    work: queue.SimpleQueue[Work] = queue.SimpleQueue()
    sent: list[FromRunner] = []
    intake = Intake(work, sent.append, lambda: None)
    prepared_by: dict[int, str] = {}

    def prepare(message: Request) -> Prepared:
        prepared_by[message.key] = threading.current_thread().name
        if message.key == 2:
            intake.take(generate(3))
            intake.cancel(Cancel(2))
        return Made(message.key)

    intake.take(generate(1))
    assert not prepared_by, "there is no model yet"
    threading.Thread(target=intake.prepare_forever, args=(prepare,), name="prepare", daemon=True).start()
    first = work.get(timeout=5)
    assert isinstance(first, Made)
    intake.take(generate(2))
    arrived = [work.get(timeout=5) for _ in range(3)]
    assert sorted(each.key for each in arrived if not isinstance(each, Shutdown | OpenSlots)) == [2, 2, 3], (
        "2, its cancel, and 3"
    )
    assert prepared_by == {1: "prepare", 2: threading.current_thread().name, 3: "prepare"}
    assert not sent, "nothing was refused, and the first step tells the rest"


def test_work_that_is_more_urgent_than_batch_work_hurries_when_it_is_ready():
    work: queue.SimpleQueue[Work] = queue.SimpleQueue()
    ready_then: queue.SimpleQueue[int] = queue.SimpleQueue()
    intake = Intake(work, lambda message: None, lambda: ready_then.put(work.qsize()))
    threading.Thread(target=intake.prepare_forever, args=(lambda message: Made(message.key),), daemon=True).start()
    for key, priority in enumerate([Priority.BATCH, Priority.INTERACTIVE, Priority.BATCH, Priority.DEFAULT]):
        intake.take(Generate(key=key, request=generate().request, priority=priority))
    first, second = ready_then.get(timeout=5), ready_then.get(timeout=5)
    assert first >= 2 and second == 4, "what is urgent was ready when it hurried"
    assert ready_then.empty()
