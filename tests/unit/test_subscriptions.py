"""The consumer ends up with the wanted queues in whatever order its loop runs what it was asked to call."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from workers.subscriptions import CeleryQueues


class Consumer:
    """Celery's, as far as queues are concerned; `calls` waits for the loop."""

    def __init__(self) -> None:
        self.task_consumer = self
        self.queues: set[str] = set()
        self.calls: list[Callable[[], None]] = []

    def consuming_from(self, queue: str) -> bool:
        return queue in self.queues

    def add_task_queue(self, queue: str) -> None:
        self.queues.add(queue)

    def cancel_task_queue(self, queue: str) -> None:
        self.queues.remove(queue)

    def call_soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)


def held(*models: str) -> frozenset[str]:
    return frozenset(models)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_overtaking_calls_leave_the_newest_wish(order: tuple[int, ...]):
    consumer, queues = Consumer(), CeleryQueues(ring=lambda: None)
    queues.attach(consumer)
    for wish in (held("a", "b"), held("b"), held("a", "b")):
        queues.set(wish)
    for index in order:
        consumer.calls[index]()
    assert consumer.queues == {"model.a", "model.b"}


def test_lost_call_is_made_up_for_by_the_next_turn():
    consumer, queues = Consumer(), CeleryQueues(ring=lambda: None)
    queues.attach(consumer)
    queues.set(held("a"))
    consumer.calls.clear()  # the loop was reset
    queues.set(held("a"))
    consumer.calls.pop()()
    assert consumer.queues == {"model.a"}
    queues.set(held("a"))
    assert consumer.calls == []  # settled


def test_new_connection_gets_what_is_wanted_and_nothing_else():
    old, new, queues = Consumer(), Consumer(), CeleryQueues(ring=lambda: None)
    queues.attach(old)
    queues.set(held("a", "b"))
    queues.set(held("b"))
    new.queues = {"model.a"}  # Celery selects what was ever added
    queues.attach(new)
    assert new.queues == {"model.b"}


def test_doorbell_rings_only_for_additions():
    rings: list[int] = []
    queues = CeleryQueues(ring=lambda: rings.append(1))
    queues.attach(Consumer())
    queues.set(held("a"))
    queues.set(held("a"))
    queues.set(held())
    assert len(rings) == 1
