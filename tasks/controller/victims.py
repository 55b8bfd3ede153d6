"""Which residents of a worker make room for a candidate: a set that fits, chosen before anything stops. Pure.

Idle residents without waiting jobs go first, by the least keep-value per byte, the longest idle first among equals.
Busy ones follow only where the caller allows it. Never a pinned model, nor one at its minimum of replicas, nor one
that is still starting: its load would be paid for nothing, and it is over in bounded time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasks.controller.demand import patience_ms
from tasks.controller.fleet_view import FleetView, WorkerView, idle_since_ms
from tasks.controller.policy_state import PolicyState
from tasks.controller.rules import Rules
from tasks.controller.value import value_of
from tasks.fleet import QueueReport, RunnerState


@dataclass(frozen=True, slots=True)
class Resident:
    """A ready runner as far as eviction is concerned."""

    model: str
    bytes: int
    value_s: float
    is_busy: bool
    ready_ms: int  # since when
    rank: tuple[bool, float, int, str]


def is_protected(view: WorkerView, model: str, fleet: FleetView) -> bool:
    """Pinned, or one of no more copies than its owner wants."""
    offer = view.offers.get(model)
    if offer is None:
        return False
    return offer.pinned or (offer.replicas > 0 and fleet.copies(model) <= offer.replicas)


def rank_residents(
    view: WorkerView, fleet: FleetView, queues: Mapping[str, QueueReport], state: PolicyState, rules: Rules
) -> list[Resident]:
    """Those that may ever leave, the least valuable first, all idle ones before all busy ones."""
    found = []
    for model, runner in view.runners.items():
        if runner.state is not RunnerState.READY or model in view.evict or is_protected(view, model, fleet):
            continue
        value = value_of(view, model, fleet, state, rules)
        size = max(1, view.bytes_of(model))
        idle = idle_since_ms(runner)
        is_busy = runner.in_flight > 0 or model in queues or state.is_expected(runner, fleet.now_ms, rules)
        rank = (is_busy, value / size, idle if idle is not None else fleet.now_ms, model)
        found.append(Resident(model, size, value, is_busy, runner.since_ms, rank))
    return sorted(found, key=lambda each: each.rank)


def reachable_bytes(view: WorkerView, fleet: FleetView) -> int:
    """The most that could ever be freed: everything but what is protected."""
    kept = sum(view.bytes_of(model) for model in view.held() if is_protected(view, model, fleet))
    return view.report.budget_bytes - kept


def pick(ranked: Sequence[Resident], shortfall: int, may_go: Callable[[Resident], bool]) -> list[Resident] | None:
    """The first in rank that together free the shortfall, without those that turned out not to be needed; or an idle
    one alone that is worth less than they are together. None when all of them free too little."""
    chosen: list[Resident] = []
    left = shortfall
    for each in ranked:
        if left <= 0:
            break
        if may_go(each):
            chosen.append(each)
            left -= each.bytes
    if left > 0:
        return None
    needed = _without_superfluous(chosen, -left)
    if not any(each.is_busy for each in needed):
        total = sum(each.value_s for each in needed)
        alone = [
            each
            for each in ranked
            if not each.is_busy and each.bytes >= shortfall and each.value_s < total and may_go(each)
        ]
        if alone:
            return [min(alone, key=lambda each: (each.value_s, each.rank))]
    return needed


def slack_ms(model: str, queues: Mapping[str, QueueReport], state: PolicyState, fleet: FleetView, rules: Rules) -> int:
    """Of a busy victim: until its jobs would miss their target. Its running jobs are late for nothing."""
    queue = queues.get(model)
    return rules.interactive_target_ms if queue is None else patience_ms(queue, rules)


def _without_superfluous(chosen: list[Resident], spare: int) -> list[Resident]:
    """Spare the last in rank, which cost most, if the others free enough."""
    needed = []
    for each in reversed(chosen):
        if each.bytes <= spare:
            spare -= each.bytes
        else:
            needed.append(each)
    return needed[::-1]
