"""What is wanted of the fleet at one moment: the controller's input besides the fleet itself. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.controller.rules import Rules
from tasks.fleet import ClassBacklog, ModelOffer, QueueReport


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterQueue:
    """What waits for a LoRA adapter, with an offer of it."""

    queue: QueueReport
    offer: ModelOffer

    @property
    def base(self) -> str:
        return self.offer.runner_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Waiting jobs, arrivals since the last tick, mean run times, operators' wishes, and what is quarantined."""

    queues: tuple[QueueReport, ...] = ()
    arrivals: Mapping[tuple[str, int], int] = field(default_factory=dict)  # (model, priority) → new jobs since then
    looked_ms: int | None = None  # when the arrivals were taken last; None: not known, so a tick ago
    service_ms: Mapping[str, float] = field(default_factory=dict)  # model → mean run time of a job
    asks: Mapping[str, str] = field(default_factory=dict)  # model → "warm" or "evict"
    quarantined: Mapping[str, str] = field(default_factory=dict)  # model → the reason
    away: Mapping[str, ModelOffer] = field(default_factory=dict)  # wanted models that only absent workers have offered
    adapters: tuple[AdapterQueue, ...] = ()  # adapters with waiting jobs, which count in `queues` as their bases'


def classes_of(queue: QueueReport) -> tuple[ClassBacklog, ...]:
    """Per priority; a report without classes counts as interactive."""
    return queue.classes or (ClassBacklog(priority=0, depth=queue.depth, oldest_age_ms=queue.oldest_age_ms),)


def patience_ms(queue: QueueReport, rules: Rules, turn_age_ms: int | None = None) -> int:
    """Until the first class misses its target; negative when it is overdue.

    `turn_age_ms`: the model had a turn and lost it so long ago; its jobs' claim counts from there (the bound on
    waiting rests on every model ahead having one turn)."""
    if turn_age_ms is None:
        return min(rules.target_ms(each.priority) - each.oldest_age_ms for each in classes_of(queue))
    return min(rules.target_ms(each.priority) - min(each.oldest_age_ms, turn_age_ms) for each in classes_of(queue))
