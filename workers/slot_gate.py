"""Which model queues the next pop may name: those whose runner has a slot that no wake-up is on its way to.

kombu asks a *queue cycle* for the queues of every BRPOP and tells it which one a message came from; its class is a
transport option (`queue_order_strategy`). GatedCycle is such a class. So a worker stays subscribed to the queues of
all its warm models, and a full one is merely left out of the pop: its jobs stay where any replica can take them.

A pop in flight keeps its queues. When a slot becomes free in a model that it left out, the doorbell ends it: a
message on the worker's private queue, which every pop names.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from kombu.utils.scheduling import round_robin_cycle

from tasks.jobs import WorkerId
from tasks.ports import ModelHost, Slot
from tasks.routing import model_of_queue

ARRIVAL_LIMIT_S = 2.0  # a popped message that has not asked for its slot by then was dropped on the way

FreeSlots = Callable[[], Mapping[str, int]]


class SlotGate:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._free_slots: FreeSlots = dict
        self._ring: Callable[[], None] = lambda: None
        self._coming: dict[str, list[float]] = defaultdict(list)  # model → when its popped wake-ups expire
        self._left_out: set[str] = set()

    def connect(self, free_slots: FreeSlots, ring: Callable[[], None]) -> None:
        """`free_slots` maps each ready model to its free slots; `ring` ends the pop in flight."""
        self._free_slots, self._ring = free_slots, ring

    def choose(self, queues: list[str]) -> list[str]:
        """The queues to name now. Queues that are no model's are always open."""
        free_slots = self._free_slots()
        with self._lock:
            self._left_out = {
                model
                for queue in queues
                if (model := model_of_queue(queue)) is not None
                and free_slots.get(model, 0) <= self._count_coming(model)
            }
            return [queue for queue in queues if model_of_queue(queue) not in self._left_out]

    def popped(self, queue: str) -> None:
        """A message came from this queue."""
        model = model_of_queue(queue)
        if model is not None:
            with self._lock:
                self._coming[model].append(self._clock() + ARRIVAL_LIMIT_S)

    def arrived(self, model: str) -> None:
        """A wake-up has taken its slot, or found none."""
        with self._lock:
            if self._coming[model]:
                self._coming[model].pop(0)

    def look_again(self) -> None:
        """Slots may have become free. Rings only if the pop in flight left such a model out."""
        free_slots = self._free_slots()
        with self._lock:
            is_due = any(free_slots.get(model, 0) > self._count_coming(model) for model in self._left_out)
        if is_due:
            self._ring()

    def _count_coming(self, model: str) -> int:
        now = self._clock()
        self._coming[model] = [expires for expires in self._coming[model] if expires > now]
        return len(self._coming[model])


class GatedCycle(round_robin_cycle):
    """kombu's round robin over the queues that the gate lets through. kombu makes one per channel."""

    def consume(self, n: int) -> list[str]:
        return gate.choose(self.items[:n])

    def rotate(self, last_used: str) -> Any:
        gate.popped(last_used)
        return super().rotate(last_used)  # type: ignore[no-untyped-call]


gate = SlotGate()  # one per process: kombu makes the cycle itself and passes nothing on


class GatedHost:
    """The warm pool behind the gate, as `tasks.ports.ModelHost`."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    @property
    def worker_id(self) -> WorkerId:
        return self._host.worker_id

    def take_slot(self, model: str) -> Slot | None:
        slot = self._host.take_slot(model)
        gate.arrived(model)
        return slot
