"""What Flower hears of tasks, sent in batches twice a second.

They are off until Flower asks for them, which it does every five seconds. Celery sends the events of a task one turn
of its loop after they happen, and waits for the store's answer before it pops the next job. Nobody watches a dashboard
that closely.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

EVENT_INTERVAL_S = 0.5
MAX_BUFFERED_EVENTS = 1000  # more than this between two batches are sent at once


class UnhurriedEvents(bootsteps.StartStopStep):  # type: ignore[misc]
    """Follows Celery's own step, which makes a new dispatcher after each (re)connect."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        dispatcher = parent.event_dispatcher
        dispatcher.on_send_buffered = None
        dispatcher.buffer_limit = MAX_BUFFERED_EVENTS
        self._timer = parent.hub.call_repeatedly(EVENT_INTERVAL_S, dispatcher.flush)

    def stop(self, parent: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            parent.event_dispatcher.flush()
