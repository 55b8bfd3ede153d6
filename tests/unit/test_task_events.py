"""Events of tasks go out in batches, and none is forgotten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.events.dispatcher import EventDispatcher
from celery.worker.consumer.events import Events
from celery.worker.control import Panel

import celeryconfig
from workers.task_events import EVENT_INTERVAL_S, WANTED_S, UnhurriedEvents


class Timer:
    def __init__(self, interval_s: float, call: Any) -> None:
        self.interval_s, self.call, self.is_cancelled = interval_s, call, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Consumer:
    """As much of Celery's consumer as the step touches; what the real dispatcher publishes is kept."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.urgent = 0
        self.timers: list[Timer] = []
        self.hub = SimpleNamespace(call_repeatedly=self._call_repeatedly)
        self.event_dispatcher = EventDispatcher(
            app=Celery("test"), enabled=False, buffer_group=["task"], on_send_buffered=self._hurry
        )
        self.event_dispatcher.enabled = True
        self.event_dispatcher.producer = SimpleNamespace(publish=self._publish)
        self.now_s = 1000.0
        self.step = UnhurriedEvents(self, clock=lambda: self.now_s)
        self.step.start(self)

    def _call_repeatedly(self, interval_s: float, call: Any) -> Timer:
        self.timers.append(Timer(interval_s, call))
        return self.timers[-1]

    def _publish(self, events: list[dict[str, Any]], **_: object) -> None:
        self.sent.append([event["type"] for event in events])

    def _hurry(self) -> None:
        self.urgent += 1


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


def test_events_wait_for_the_next_batch(consumer: Consumer):
    consumer.event_dispatcher.send("task-received", uuid="1")
    consumer.event_dispatcher.send("task-started", uuid="1")
    assert (consumer.sent, consumer.urgent) == ([], 0)
    (timer,) = consumer.timers
    timer.call()
    timer.call()
    assert timer.interval_s == EVENT_INTERVAL_S
    assert consumer.sent == [["task-received", "task-started"]]


def test_end_of_the_consumer_sends_what_waits(consumer: Consumer):
    consumer.event_dispatcher.send("task-succeeded", uuid="1")
    consumer.step.stop(consumer)
    assert consumer.sent == [["task-succeeded"]]
    assert consumer.timers[0].is_cancelled


def test_events_are_off_until_they_are_asked_for(consumer: Consumer):
    """As Flower does. Celery has no dispatcher to switch on where it sends no heartbeats either."""
    step = Events(SimpleNamespace(), task_events=celeryconfig.worker_send_task_events, without_gossip=True)
    dispatcher = consumer.event_dispatcher
    dispatcher.enabled, dispatcher.groups = step.enabled, set(step.groups)
    dispatcher.send("task-received", uuid="1")
    ask(consumer)
    dispatcher.send("task-started", uuid="1")
    consumer.timers[0].call()
    assert consumer.sent == [["task-started"]]


def ask(consumer: Consumer) -> None:
    """What Flower's message does in a worker."""
    assert "ok" in Panel.data["enable_events"](SimpleNamespace(consumer=consumer))


def test_events_go_off_when_nobody_asks_any_more_and_on_again_when_somebody_does(consumer: Consumer):
    dispatcher = consumer.event_dispatcher
    dispatcher.groups = {"worker"}
    for _ in range(3):
        consumer.now_s += WANTED_S
        ask(consumer)
        consumer.timers[0].call()
        dispatcher.send("task-started", uuid="1")
    consumer.now_s += WANTED_S + 1
    consumer.timers[0].call()
    dispatcher.send("task-succeeded", uuid="1")
    consumer.timers[0].call()
    assert consumer.sent == [["task-started"]] * 3
    ask(consumer)
    dispatcher.send("task-received", uuid="2")
    consumer.timers[0].call()
    assert consumer.sent[3:] == [["task-received"]]
