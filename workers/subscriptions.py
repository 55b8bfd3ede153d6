"""Which model queues the Celery consumer pops from, changed from outside its event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tasks.routing import model_queue


class CeleryQueues:
    """`set` may be called from any thread; the changes run inside the consumer's loop, one after another.

    After an addition the doorbell is rung: a pop in flight keeps its old list of queues for up to a second, and a
    message on the worker's private queue ends it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._consumer: Any = None
        self._wanted: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def attach(self, consumer: Any) -> None:
        """A (new) consumer is up; called in its loop after every connect."""
        self._consumer = consumer
        with self._lock:
            for model in self._wanted:
                _add(consumer, model)

    def set(self, models: frozenset[str]) -> None:
        with self._lock:
            added, removed = models - self._wanted, self._wanted - models
            self._wanted = models
            consumer = self._consumer
        if consumer is None:
            return
        for model in sorted(removed):
            consumer.call_soon(consumer.cancel_task_queue, model_queue(model))
        for model in sorted(added):
            consumer.call_soon(_add, consumer, model)
        if added:
            self._ring()


def _add(consumer: Any, model: str) -> None:
    consumer.add_task_queue(model_queue(model))
