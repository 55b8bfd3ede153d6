"""LoRA adapters in the controller: what waits for an adapter waits for its base, whose runner serves both. Pure.

Here alone, before a plan is made, what is wanted of adapters becomes demand of their bases; so `plan` places bases and
knows of no adapter. What stands in the way of an adapter's jobs is told of the adapter (`obstacles`), because fallbacks
and refusals are of the model that was asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec

from tasks.controller.decisions import SLOTS_TAKEN, Action, Code, Decision
from tasks.controller.demand import AdapterQueue, Demand, classes_of
from tasks.controller.scene import Scene
from tasks.fleet import ClassBacklog, Fleet, ModelOffer, QueueReport


def adapters_of(fleet: Fleet, away: Mapping[str, ModelOffer]) -> dict[str, ModelOffer]:
    """An offer per adapter: of a worker where it works, if there is one, else of one that is away."""
    found = {model: offer for model, offer in away.items() if offer.base is not None}
    live: dict[str, ModelOffer] = {}
    for worker in fleet.workers:
        for offer in worker.offers if not worker.is_draining else ():
            if offer.base is not None and (offer.id not in live or not live[offer.id].is_usable):
                live[offer.id] = offer
    return found | live


def as_demand_of_bases(demand: Demand, adapters: Mapping[str, ModelOffer]) -> Demand:
    """Queues and arrivals of adapters under the names of their bases; those of an adapter that no base could serve are
    not the base's."""
    if not adapters:
        return demand
    waiting = tuple(
        AdapterQueue(queue=queue, offer=adapters[queue.model]) for queue in demand.queues if queue.model in adapters
    )
    blocked = {each.queue.model for each in waiting if not _counts(each, demand)}
    bases = {model: offer.runner_model for model, offer in adapters.items()}
    of_runner: dict[str, list[QueueReport]] = {}
    for queue in demand.queues:
        if queue.model not in blocked:
            of_runner.setdefault(bases.get(queue.model, queue.model), []).append(queue)
    arrivals: Counter[tuple[str, int]] = Counter()
    for (model, priority), count in demand.arrivals.items():
        arrivals[bases.get(model, model), priority] += count
    return replace(
        demand,
        queues=tuple(_merged(model, queues) for model, queues in sorted(of_runner.items())),
        arrivals=dict(arrivals),
        service_ms={**demand.service_ms, **_service_ms(of_runner, demand.service_ms)},
        adapters=waiting,
    )


def obstacles(scene: Scene) -> list[Decision]:
    """Of every adapter that jobs wait for: what keeps them waiting, or why they can't be served."""
    found = []
    lines = {each.model: each for each in scene.decisions if each.code in SLOTS_TAKEN}
    of_base = lines | {each.model: each for each in scene.decisions if each.action in (Action.WAIT, Action.REFUSE)}
    for each in scene.demand.adapters:
        found += _obstacles(each, of_base.get(each.base), scene)
    return found


def _obstacles(asked: AdapterQueue, of_base: Decision | None, scene: Scene) -> list[Decision]:
    model, base = asked.queue.model, asked.base

    def say(action: Action, code: Code, text: str) -> list[Decision]:
        return [Decision(at_ms=scene.now_ms, action=action, code=code, model=model, text=text)]

    if model in scene.demand.quarantined:
        return say(Action.REFUSE, Code.QUARANTINED, scene.demand.quarantined[model])
    if model in scene.demand.away:
        text = f"no live worker offers '{model}'; the one that did so lately may come back"
        return say(Action.WAIT, Code.NO_WORKER, text)
    if not asked.offer.is_usable:
        return say(Action.REFUSE, Code.LOAD_FAILED, f"'{model}' can't be loaded: {asked.offer.failure or 'unknown'}")
    if of_base is not None:
        text = f"its base '{base}' serves it: {of_base.text}"
        return [msgspec.structs.replace(of_base, model=model, text=text)]
    holders = scene.fleet.holders(base)
    if holders and not any(model in view.offers and view.offers[model].is_usable for view in holders):
        names = ", ".join(view.id for view in holders)
        return say(Action.WAIT, Code.NO_WORKER, f"its base '{base}' is held by {names}, which can't serve '{model}'")
    return []


def _counts(asked: AdapterQueue, demand: Demand) -> bool:
    """Whether loading its base would serve it."""
    model = asked.queue.model
    return model not in demand.quarantined and model not in demand.away and asked.offer.is_usable


def _merged(model: str, queues: Iterable[QueueReport]) -> QueueReport:
    levels: dict[int, list[ClassBacklog]] = {}
    for queue in queues:
        for each in classes_of(queue):
            levels.setdefault(each.priority, []).append(each)
    classes = tuple(
        ClassBacklog(
            priority=priority,
            depth=sum(each.depth for each in alike),
            oldest_age_ms=max(each.oldest_age_ms for each in alike),
        )
        for priority, alike in sorted(levels.items())
    )
    return QueueReport(
        model=model,
        depth=sum(each.depth for each in classes),
        oldest_age_ms=max(each.oldest_age_ms for each in classes),
        classes=classes,
    )


def _service_ms(of_runner: Mapping[str, list[QueueReport]], service_ms: Mapping[str, float]) -> dict[str, float]:
    """Mean run time of what waits for each runner, of whichever of its models."""
    means = {}
    for runner, queues in of_runner.items():
        known = [(queue.depth, service_ms[queue.model]) for queue in queues if queue.model in service_ms]
        if known:
            means[runner] = sum(depth * mean for depth, mean in known) / sum(depth for depth, _ in known)
    return means
