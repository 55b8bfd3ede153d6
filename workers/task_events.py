"""What Flower hears of tasks, sent in batches twice a second while there is a Flower.

They are off until Flower asks for them, which it does every five seconds, and again when nobody has asked for a while:
Celery itself never switches them off. Celery sends the events of a task one turn of its loop after they happen, and
waits for the store's answer before it pops the next job. Nobody watches a dashboard that closely.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker import control

EVENT_INTERVAL_S = 0.5
MAX_BUFFERED_EVENTS = 1000  # more than this between two batches are sent at once
WANTED_S = 30.0  # after each time that somebody asks; some of Flower's messages may be lost


class UnhurriedEvents(bootsteps.StartStopStep):  # type: ignore[misc]
    """Follows Celery's own step, which makes a new dispatcher after each (re)connect."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, parent: Any, *, clock: Callable[[], float] = time.monotonic, **options: Any) -> None:
        super().__init__(parent, **options)
        self._clock = clock
        self._asked_at = clock()
        self._timer: Any = None
        parent.unhurried_events = self  # where the remote command finds it

    def start(self, parent: Any) -> None:
        dispatcher = parent.event_dispatcher
        dispatcher.on_send_buffered = None
        dispatcher.buffer_limit = MAX_BUFFERED_EVENTS
        self._timer = parent.hub.call_repeatedly(EVENT_INTERVAL_S, lambda: self._send(dispatcher))

    def stop(self, parent: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            parent.event_dispatcher.flush()

    def was_asked_for(self) -> None:
        self._asked_at = self._clock()

    def _send(self, dispatcher: Any) -> None:
        dispatcher.flush()
        if self._clock() - self._asked_at > WANTED_S:
            dispatcher.groups.discard("task")


_switch_on = control.enable_events


@control.control_command(name="enable_events")  # type: ignore[untyped-decorator]
def enable_events(state: Any) -> Any:
    """Tell workers to send task-related events for half a minute."""
    state.consumer.unhurried_events.was_asked_for()
    return _switch_on(state)
