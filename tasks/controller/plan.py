"""Decide which worker should hold which models. Pure and deterministic: integer ms, ids break ties, no clock, no store.

    1  forget what is no longer true: workers that left, models that nobody offers or that failed there; quarantined
       models leave every worker and are placed nowhere
    2  operators' wishes: `evict` leaves, `warm` becomes a candidate
    3  idle models past their TTL leave, and extra replicas that were idle for long
    4  candidates: models with waiting jobs that nobody holds. Overdue ones first, in the order in which they became
       overdue; then by slack, the time until a job misses its class target even if the load began now. After them
       pinned models, minimum replicas and wishes
    5  for each candidate a worker (`placing`): room, idle victims, busy victims under the rules against thrash, and
       for overdue ones a bound on waiting
    6  models that are held and have waiting jobs: one more slot (`widening`), or another replica when it pays
       (`replicas`)
    7  a candidate that fits nowhere, or failed everywhere, ends its jobs with the reason, or hands them to its
       fallback model; so do jobs that wait for too long, for a load or in a line, while their fallback has free slots
    8  models that are likely to come next are named for the page cache

Bound on waiting. T: class target; L: longest load; D: longest drain; R = (1/φ − 1)·L: frame. From the moment when a
model's oldest job began to wait, or the model last had to leave, its runner is ready within T + n·(R + D + L), with n
the number of models that became overdue before it and want the same workers, itself included. For at T it is overdue;
the first of the overdue claims a worker, where from then on nobody else is loaded; within R every resident there has
had its frame and may go; the drain and the load follow. A model that had to leave counts as waiting only from
then on, so each model is ahead of it at most once. Pinned models don't leave: what doesn't fit beside them is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.controller.decisions import Action, Code, Decision
from tasks.controller.demand import Demand
from tasks.controller.fallback import hand_over
from tasks.controller.fleet_view import FleetView, Memo, by_id, idle_since_ms
from tasks.controller.placing import place
from tasks.controller.policy_state import LoadFailures, PolicyState, with_arrivals, with_asked
from tasks.controller.prefetch import prefetch_hints
from tasks.controller.replicas import drop_idle, scale_up
from tasks.controller.rules import Rules
from tasks.controller.scene import Scene
from tasks.controller.victims import is_protected
from tasks.fleet import Fleet, Placement, RunnerState

RULES = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`placement` has the epoch of the observed one plus one if anything changed, else it is the observed one."""

    placement: Placement
    state: PolicyState  # for the next call
    decisions: tuple[Decision, ...]
    fallbacks: dict[str, str] = field(default_factory=dict)  # model → the model that its waiting jobs should go to
    fallback_slots: dict[str, int] = field(default_factory=dict)  # at most so many of them; without an entry: all

    def refused(self) -> dict[str, Decision]:
        """Models whose waiting jobs can't be served, with the reason."""
        return {each.model: each for each in self.decisions if each.action is Action.REFUSE}

    def unservable(self) -> dict[str, Decision]:
        """Models that can't be served while their fallback can, with the reason."""
        handed = [each for each in self.decisions if each.action is Action.FALLBACK]
        return {each.model: each for each in handed if each.code is not Code.WAIT_TOO_LONG}

    def waiting(self) -> set[str]:
        """Models that should be loaded and can't be yet."""
        return {each.model for each in self.decisions if each.action is Action.WAIT}


def plan(
    *,
    demand: Demand,
    fleet: Fleet,
    placement: Placement,
    state: PolicyState,
    rules: Rules = RULES,
    memo: Memo | None = None,
) -> Plan:
    """The desired placement for what was observed, with a reason for every step. The clock is `fleet.now_ms`.

    `memo`: what an earlier call derived from objects that are still the same; it saves time and changes nothing."""
    view = FleetView(fleet, placement, memo if memo is not None else Memo())
    state = with_arrivals(state, demand.arrivals, fleet.now_ms, rules)
    scene = Scene(view, demand, with_asked(state, demand, fleet.now_ms, rules), rules)
    _note_failures(scene)
    _drop_quarantined(scene)
    _drop_asked(scene)
    _drop_expired(scene)
    drop_idle(scene)
    held = [model for model in scene.queues if view.copies(model)]
    for model in _candidates(scene):
        place(model, scene)
    for model, copies in sorted(_standing(scene).items()):
        _place_standing(model, copies, scene)
    for model in sorted(held):
        if view.copies(model):
            scale_up(model, scene)
    hand_over(scene)
    desired = prefetch_hints(scene, view.placement(placement), placement)
    return Plan(
        placement=desired,
        state=scene.state,
        decisions=tuple(scene.decisions),
        fallbacks=dict(scene.fallbacks),
        fallback_slots=dict(scene.fallback_slots),
    )


def _note_failures(scene: Scene) -> None:
    """Rule 1: a held model that its worker reports as failed was dropped there; tries elsewhere come after pauses."""
    for view in [each for each in scene.fleet if each.failed]:
        for model in view.failed:
            known = scene.state.failures.get(model)
            count = known.count + 1 if known else 1
            rules = scene.rules
            pause_ms = 0 if count == 1 else min(rules.first_pause_ms * 2 ** (count - 2), rules.last_pause_ms)
            workers = (*(known.workers[-3:] if known else ()), view.id)
            reason = view.offers[model].failure or "unknown"
            scene.set_failures(model, LoadFailures(count, scene.now_ms + pause_ms, reason, workers))
    for model in sorted(scene.state.failures):
        runners = [view.runners.get(model) for view in scene.fleet.holders(model)]
        if any(runner is not None and runner.state is RunnerState.READY for runner in runners):
            scene.set_failures(model, None)


def _drop_quarantined(scene: Scene) -> None:
    """Rule 1."""
    for model, reason in sorted(scene.demand.quarantined.items()):
        for view in scene.fleet.holders(model):
            scene.say(Action.EVICT, Code.QUARANTINED, model, reason, worker=view.id)
            scene.evict(view.id, model)


def _drop_asked(scene: Scene) -> None:
    """Rule 2."""
    for model in sorted(model for model, ask in scene.demand.asks.items() if ask == "evict"):
        for view in scene.fleet.holders(model):
            scene.say(Action.EVICT, Code.ASKED, model, "an operator asked for it", worker=view.id)
            scene.evict(view.id, model)


def _drop_expired(scene: Scene) -> None:
    """Rule 3."""
    now_ms = scene.now_ms
    for view in by_id(each for each in scene.fleet if each.ttl_ms is not None and each.ttl_ms < now_ms):
        for model, runner in sorted(view.runners.items()):
            offer, idle = view.offers.get(model), idle_since_ms(runner)
            if offer is None or offer.ttl_s is None or idle is None or not view.holds(model) or model in scene.queues:
                continue
            idle_ms = now_ms - idle
            if idle_ms > offer.ttl_s * 1000 and not is_protected(view, model, scene.fleet):
                text = f"idle for {idle_ms / 1000:.0f} s, its TTL is {offer.ttl_s} s"
                terms = {"idle_ms": idle_ms, "ttl_ms": offer.ttl_s * 1000}
                scene.say(Action.EVICT, Code.TTL, model, text, worker=view.id, terms=terms)
                scene.evict(view.id, model)


def _candidates(scene: Scene) -> list[str]:
    """Rule 4: models with waiting jobs that nobody holds."""

    def urgency(model: str) -> tuple[bool, int, str]:
        patience, offer = scene.patience_ms(model) or 0, scene.fleet.offer(model)
        is_overdue = patience <= 0
        return (not is_overdue, patience if is_overdue or offer is None else patience - offer.load_ms, model)

    absent = []
    for model in sorted(scene.queues):
        if model in scene.demand.quarantined:
            scene.say(Action.REFUSE, Code.QUARANTINED, model, scene.demand.quarantined[model])
        elif not scene.fleet.copies(model):
            absent.append(model)
    return sorted(absent, key=urgency)


def _standing(scene: Scene) -> dict[str, int]:
    """Rule 4: pinned models, minimum replicas and operators' wishes that are not fulfilled, with the copies."""
    wanted = scene.fleet.standing()
    for model, ask in scene.demand.asks.items():
        if ask == "warm":
            wanted[model] = max(1, wanted.get(model, 0))
    unmet = {model: copies for model, copies in wanted.items() if scene.fleet.copies(model) < copies}
    for model in sorted(unmet.keys() & scene.demand.quarantined.keys()):
        if model not in scene.queues:
            scene.say(Action.REFUSE, Code.QUARANTINED, model, scene.demand.quarantined[model])
    return {model: copies for model, copies in unmet.items() if model not in scene.demand.quarantined}


def _place_standing(model: str, copies: int, scene: Scene) -> None:
    decided = {each.model for each in scene.decisions if each.action in (Action.WAIT, Action.REFUSE)}
    while model not in decided and scene.fleet.copies(model) < copies:
        if scene.fleet.copies(model) and not _has_place_left(model, scene):
            break
        if not place(model, scene, may_displace_busy=False):
            break


def _has_place_left(model: str, scene: Scene) -> bool:
    """More replicas than workers are a wish that no plan can fulfil; it is no reason to refuse jobs."""
    return any(model in view.offers and not view.holds(model) for view in scene.fleet)
