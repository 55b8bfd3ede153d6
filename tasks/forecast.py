"""When a job will start, and when to come back to a full line, from what was measured. Pure: no store, no clock.

The measure is the mean run time of a model's succeeded jobs (lua/finish.lua). Jobs that run side by side are slower
than one alone, so with all S slots busy the model serves S / mean jobs per second (Little's law). A job with n jobs
before it and f free slots waits for n + 1 - f of them to end, after the load when the model is cold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tasks.fleet import Fleet, ModelOffer, RunnerState
from tasks.jobs import Priority

MIN_SAMPLES = 5  # a job is refused only on the word of at least this many others
RETRY_SHARE = 0.05  # come back once this part of the line has been served: all that wait don't come back at once
MAX_RETRY_AFTER_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTime:
    """Mean run time of a model's jobs, over how many, and when the newest ended (ms of the store's clock)."""

    mean_ms: float
    samples: int
    measured_ms: int

    @property
    def is_trusted(self) -> bool:
        return self.samples >= MIN_SAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Where a model's jobs run: its slots, those that are free, and how long until there are any."""

    slots: int
    free: int
    load_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRoom:
    """How many jobs may wait, how many more than do now, and when a line without newcomers would be empty."""

    limit: int
    remaining: int
    empty_in_s: float | None = None  # None: nothing measured says so


def seats(offer: ModelOffer, fleet: Fleet, priority: Priority = Priority.BATCH) -> Seats:
    """Of the ready runners; of the one that is loading or would have to be loaded if there is none.

    For a job that is more urgent than batch work, places where batch work runs are free: it gives way."""
    runners = [
        (runner, worker.free_bytes)
        for worker in fleet.workers
        if not worker.is_draining
        for runner in worker.runners
        if runner.serves(offer.id)
    ]
    ready = [(runner, free_bytes) for runner, free_bytes in runners if runner.state is RunnerState.READY]
    if ready:
        slots = sum(runner.slots_with(free_bytes) for runner, free_bytes in ready)
        taken = sum(runner.in_flight for runner, _ in ready)
        if priority is not Priority.BATCH:
            taken -= sum(runner.batch_in_flight for runner, _ in ready)
        return Seats(slots=slots, free=max(0, slots - taken))
    progress = max((runner.progress for runner, _ in runners if runner.state is RunnerState.STARTING), default=0.0)
    return Seats(slots=offer.slots, free=offer.slots, load_ms=round(offer.load_ms * (1 - progress)))


def predicted_wait_ms(*, ahead: int, seats: Seats, service: ServiceTime | None) -> int | None:
    """Until a job with `ahead` jobs before it starts; None when it depends on what was never measured."""
    num_ends = max(0, ahead + 1 - seats.free)
    if not num_ends:
        return seats.load_ms
    if service is None or not seats.slots:
        return None
    return seats.load_ms + round(num_ends * service.mean_ms / seats.slots)


def jobs_per_s(served: Iterable[tuple[Seats, ServiceTime | None]]) -> float | None:
    """What these models serve together with all slots busy; None when nothing was measured of any."""
    rates = [
        seats.slots * 1000 / service.mean_ms for seats, service in served if service is not None and service.mean_ms > 0
    ]
    return sum(rates) if rates else None


def retry_after_s(*, depth: int, rate: float | None, unknown_s: int) -> int:
    """When a line of this depth will have moved noticeably; `unknown_s` without a measured rate."""
    if rate is None or rate <= 0:
        return unknown_s
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(max(1, depth * RETRY_SHARE) / rate)))
