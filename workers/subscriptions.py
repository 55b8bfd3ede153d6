"""Which model queues the Celery consumer pops from, changed from outside its event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tasks.routing import model_queue


class CeleryQueues:
    """`set` may be called from any thread; the changes run inside the consumer's loop.

    Level-triggered: the loop keeps what it was asked to call in a set, so that calls may overtake each other, and a
    reconnect forgets them. So every call looks at what is wanted by then and at what the consumer really pops from,
    and `set` asks again until both agree.

    After an addition the doorbell is rung: a pop in flight keeps its old list of queues for up to a second, and a
    message on the worker's private queue ends it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._consumer: Any = None
        self._wanted: frozenset[str] = frozenset()
        self._applied: frozenset[str] | None = None  # None: nobody knows
        self._ever: set[str] = set()
        self._lock = threading.Lock()

    def attach(self, consumer: Any) -> None:
        """A (new) consumer is up; called in its loop after every connect."""
        self._consumer = consumer
        self._apply()

    def set(self, models: frozenset[str]) -> None:
        with self._lock:
            has_more = not models <= self._wanted
            is_settled = self._applied == models == self._wanted
            self._wanted = models
            self._ever |= models
        if self._consumer is None or is_settled:
            return
        self._consumer.call_soon(self._apply)
        if has_more:
            self._ring()

    def _apply(self) -> None:
        """In the consumer's loop."""
        with self._lock:
            wanted, ever, self._applied = self._wanted, sorted(self._ever), None
        consumer = self._consumer
        for model in ever:
            queue = model_queue(model)
            is_on = consumer.task_consumer.consuming_from(queue)
            if model in wanted and not is_on:
                consumer.add_task_queue(queue)
            elif model not in wanted and is_on:
                consumer.cancel_task_queue(queue)
        with self._lock:
            self._applied = wanted
