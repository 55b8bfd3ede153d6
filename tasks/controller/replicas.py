"""More copies of a model when its queue outweighs a load, fewer when they are idle: rules 3 and 6 of `plan`. Pure.

A further replica must pay (AlpaServe's replicas by rate × time, on what waits now): with C slots on n replicas, mean
run time s and Q waiting jobs, the line takes Q·s/C. It has to outlast the load, and the waiting that a replica of K
slots more saves, Q²s/2 · (1/C − 1/(C+K)), must exceed what the victims are worth and the load by a margin. Closed slots
for which there is no memory don't count in C.

While every slot is taken, the line takes at least as long as its head has waited already. So where there is room, s is
at least what that wait says, Q·s/C ≥ wait: a model none of whose jobs has ended yet has no other figure, and long
jobs show before their ends do. It is no reason to send others away: where memory is short and everybody waits, that
made waits at high load longer (simulated).
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.controller.decisions import Action, Code, Term
from tasks.controller.demand import classes_of
from tasks.controller.fleet_view import WorkerView, idle_since_ms
from tasks.controller.placing import Site, cheapest, load_replica, open_workers
from tasks.controller.scene import Scene
from tasks.controller.value import load_ms
from tasks.controller.victims import is_protected
from tasks.controller.widening import widen
from tasks.fleet import ModelOffer, QueueReport, RunnerReport, RunnerState
from tasks.jobs import Priority


def scale_up(model: str, scene: Scene) -> None:
    """For a model that is held and has waiting jobs: one more copy, or the reason why not."""
    fleet, rules = scene.fleet, scene.rules
    holders = fleet.holders(model)
    n = len(holders)
    queue, offer = scene.queues[model], fleet.offer(model)
    runners = [view.runners.get(model) for view in holders]
    if offer is None or any(runner is None or runner.state is not RunnerState.READY for runner in runners):
        scene.say(Action.KEEP, Code.LOADING, model, "it is being loaded", terms={"copies": n, "depth": queue.depth})
        return
    free = sum(max(0, runner.open_slots - runner.in_flight) for runner in runners if runner is not None)
    slots = max(1, sum(view.runners[model].slots_with(view.free_bytes) for view in holders))
    shown_ms = _shown_wait_ms(queue, [runner for runner in runners if runner is not None], scene.now_ms)
    service_ms = scene.demand.service_ms.get(model, 0.0)
    line_ms = max(round(queue.depth * service_ms / slots), shown_ms)
    terms: dict[str, Term] = {
        "copies": n, "depth": queue.depth, "slots": slots, "free_slots": free,
        "service_ms": round(service_ms), "shown_wait_ms": shown_ms, "line_ms": line_ms,
    }  # fmt: skip
    if free:
        scene.say(Action.KEEP, Code.SLOTS_FREE, model, f"{free} slots are free", terms=terms)
        return
    if widen(model, scene, service_ms=service_ms, shown_ms=shown_ms):
        return
    if n >= max(offer.max_replicas, offer.replicas):
        text = f"all slots are taken, and {n} of at most {offer.max_replicas} replicas are there"
        scene.say(Action.KEEP, Code.REPLICA_CEILING, model, text, terms=terms)
        return
    own_ms = min((load_ms(view, view.offers[model]) for view in holders if model in view.offers), default=offer.load_ms)
    if line_ms <= own_ms + rules.replica_wait_ms:
        text = f"the line takes {line_ms} ms, no longer than a load of {own_ms} ms and {rules.replica_wait_ms} ms"
        scene.say(Action.KEEP, Code.QUEUE_TOO_SHORT, model, text, terms={**terms, "load_ms": own_ms})
        return
    _replicate(model, offer, n, slots, service_ms, shown_ms, terms, scene)


def _shown_wait_ms(queue: QueueReport, runners: Sequence[RunnerReport], now_ms: int) -> int:
    """How long the head of the line has waited since the newest copy is ready. Batch jobs give way, so that their wait
    says nothing about the line."""
    classes = classes_of(queue)
    urgent = [each for each in classes if each.priority < Priority.BATCH] or classes
    ready_ms = now_ms - max((runner.since_ms for runner in runners), default=now_ms)
    return max(0, min(max(each.oldest_age_ms for each in urgent), ready_ms))


def _replicate(
    model: str,
    offer: ModelOffer,
    n: int,
    slots: int,
    service_ms: float,
    shown_ms: int,
    terms: dict[str, Term],
    scene: Scene,
) -> None:
    """`n` copies have so many slots in all."""
    depth, gain = scene.queues[model].depth, scene.rules.replica_gain
    saved_s = depth**2 * service_ms / 2000 * (1 / slots - 1 / (slots + max(1, offer.slots)))
    shown_saved_s = max(saved_s, depth * shown_ms / (2000 * (n + 1)))  # the same with s = wait·K·n/Q
    views = [view for view in open_workers(model, scene) if view.id not in scene.claimed]
    room = cheapest(views, model, scene, lambda _view, _each: False)
    if room is not None and shown_saved_s > gain * _cost_s(room):
        load_replica(room, model, scene)
        return
    site = cheapest(views, model, scene, lambda _view, each: not each.is_busy)
    if site is None:
        text = "all slots are taken; no other worker has room or idle models for a replica"
        scene.say(Action.KEEP, Code.REPLICA_TOO_DEAR, model, text, terms={**terms, "saved_s": round(saved_s, 2)})
        return
    cost_s = _cost_s(site)
    if saved_s <= gain * cost_s:
        text = f"a replica would save {saved_s:.1f} s of waiting and cost {cost_s:.1f} s"
        terms = {**terms, "saved_s": round(saved_s, 2), "cost_s": round(cost_s, 2)}
        scene.say(Action.KEEP, Code.REPLICA_TOO_DEAR, model, text, terms=terms)
        return
    load_replica(site, model, scene)


def _cost_s(site: Site) -> float:
    return site.lost_s + site.start_ms / 1000


def drop_idle(scene: Scene) -> None:
    """An extra copy that was idle for long leaves; the longest idle first, never the last, never below `replicas`."""
    for model in scene.fleet.replicated():
        while True:
            idle = [
                (since, view.id)
                for view in scene.fleet.holders(model)
                if (since := _idle_since(view, model)) is not None
                and scene.now_ms - since >= scene.rules.replica_idle_ms
                and not is_protected(view, model, scene.fleet)
            ]
            if not idle or scene.fleet.copies(model) <= 1 or model in scene.queues:
                break
            since, worker = min(idle)
            idle_ms = scene.now_ms - since
            text = f"one of {scene.fleet.copies(model)} replicas, idle for {idle_ms / 1000:.0f} s"
            copies = scene.fleet.copies(model)
            terms: dict[str, Term] = {"idle_ms": idle_ms, "copies": copies, "limit_ms": scene.rules.replica_idle_ms}
            scene.say(Action.EVICT, Code.EXTRA_REPLICA, model, text, worker=worker, terms=terms)
            scene.evict(worker, model)


def _idle_since(view: WorkerView, model: str) -> int | None:
    runner = view.runners.get(model)
    return None if runner is None else idle_since_ms(runner)
