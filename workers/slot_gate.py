"""Which model queues the next pop may name: those whose runner has a slot that no wake-up is on its way to.

kombu asks a *queue cycle* for the queues of every BRPOP and tells it which one a message came from; its class is a
transport option (`queue_order_strategy`). GatedCycle is such a class. So a worker stays subscribed to the queues of
all its warm models, and a full one is merely left out of the pop: its jobs stay where any replica can take them.

Adapters share the slots of their base, so wake-ups on their way are counted for all of them together.

A model whose slots are all held, some of them by batch work, is named with its urgent levels only: the engine parks
batch work for more urgent work.

A pop in flight keeps its queues. When a slot becomes free in a model that it left out, the doorbell ends it: a
message on the worker's private queue, which every pop names.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kombu.utils.scheduling import round_robin_cycle

from tasks.jobs import Priority, WorkerId
from tasks.ports import ModelHost, Slot
from tasks.routing import model_of_queue

ARRIVAL_LIMIT_S = 2.0  # a popped message that has not asked for its slot by then was dropped on the way

FreeSlots = Callable[[], Mapping[str, int]]
_URGENT_LEVELS = sum(priority is not Priority.BATCH for priority in Priority)  # they come first in priority_steps


class QueuesByLevel:
    """The queues of one pop. kombu goes through them once per priority step, 0 first (`Channel._brpop_start`), and
    makes the keys of that step: so the pass for batch work leaves out what only urgent work may enter."""

    def __init__(self, urgent: list[str], batch: list[str]) -> None:
        self.urgent = urgent  # for everything that is more urgent than batch work
        self.batch = batch
        self._passes = 0

    def __bool__(self) -> bool:
        return bool(self.urgent)

    def __iter__(self) -> Iterator[str]:
        self._passes += 1
        return iter(self.urgent if self._passes <= _URGENT_LEVELS else self.batch)


class SlotGate:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._free_slots: FreeSlots = dict
        self._urgent_slots: FreeSlots = dict
        self._ring: Callable[[], None] = lambda: None
        self._runner_of: Callable[[str], str] = str
        self._coming: dict[str, list[float]] = defaultdict(list)  # runner's model → when its popped wake-ups expire
        self._closed_to_batch: set[str] = set()
        self._closed: set[str] = set()
        self._has_rung = False  # for the pop in flight

    def connect(
        self,
        free_slots: FreeSlots,
        urgent_slots: FreeSlots,
        ring: Callable[[], None],
        runner_of: Callable[[str], str] = str,
    ) -> None:
        """The slots map each ready model to how many jobs it could take, of any priority and more urgent than batch;
        `ring` ends the pop in flight; `runner_of` names the model whose runner serves a model."""
        self._free_slots, self._urgent_slots, self._ring = free_slots, urgent_slots, ring
        self._runner_of = runner_of

    def choose(self, queues: list[str]) -> QueuesByLevel:
        """The queues to name now. Queues that are no model's are always open."""
        models = {model for queue in queues if (model := model_of_queue(queue)) is not None}
        with self._lock:  # looking included: of a slot that becomes free in between, nobody would tell again
            self._closed = models - self._open(models, self._urgent_slots())
            self._closed_to_batch = models - self._open(models, self._free_slots())
            self._has_rung = False
            return QueuesByLevel(
                urgent=[queue for queue in queues if model_of_queue(queue) not in self._closed],
                batch=[queue for queue in queues if model_of_queue(queue) not in self._closed_to_batch],
            )

    def popped(self, queue: str) -> None:
        """A message came from this queue."""
        model = model_of_queue(queue)
        if model is not None:
            runner = self._runner_of(model)
            with self._lock:
                self._coming[runner].append(self._clock() + ARRIVAL_LIMIT_S)

    def arrived(self, model: str) -> None:
        """A wake-up has taken its slot, or found none. A slot that became free while it was on its way counts now."""
        runner = self._runner_of(model)
        with self._lock:
            if self._coming[runner]:
                self._coming[runner].pop(0)
        self.look_again()

    def look_again(self) -> None:
        """Slots may have become free. Rings only if the pop in flight left such a model out, and only once for it."""
        with self._lock:
            if self._has_rung or not self._has_opened():
                return
            self._has_rung = True
        self._ring()

    def _has_opened(self) -> bool:
        """Whether the pop in flight left out a model that could take a job now."""
        left_out = ((self._closed, self._urgent_slots), (self._closed_to_batch, self._free_slots))
        return any(models and self._open(models, slots()) for models, slots in left_out)

    def _open(self, models: set[str], slots: Mapping[str, int]) -> set[str]:
        return {model for model in models if slots.get(model, 0) > self._count_coming(model)}

    def _count_coming(self, model: str) -> int:
        runner, now = self._runner_of(model), self._clock()
        self._coming[runner] = [expires for expires in self._coming[runner] if expires > now]
        return len(self._coming[runner])


class GatedCycle(round_robin_cycle):
    """kombu's round robin over the queues that the gate lets through. kombu makes one per channel."""

    def consume(self, n: int) -> QueuesByLevel:
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

    def take_slot(self, model: str, priority: Priority) -> Slot | None:
        slot = self._host.take_slot(model, priority)
        gate.arrived(model)
        return slot
