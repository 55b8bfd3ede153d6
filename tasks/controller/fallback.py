"""Rule 7 of `plan`: when the waiting jobs of a model should go to its fallback model. Pure.

A refusal becomes a hand-over when the fallback can be served; a wait beyond the target does when the fallback has a
free slot in a ready runner right now. Only jobs without a published token may be handed over: a stream that began in
one model's words never ends in another's. And only text goes to another model: vectors and scores of two models can't
be compared, so a client that got them from the wrong one would not even notice.
"""

from __future__ import annotations

from tasks.controller.adapters import obstacles
from tasks.controller.decisions import Action, Code, Decision
from tasks.controller.scene import Scene
from tasks.fleet import ModelKind, RunnerState


def hand_over(scene: Scene) -> None:
    """Replace refusals, and add to waits, where a fallback can serve."""
    kept: list[Decision] = []
    for decision in [*scene.decisions, *obstacles(scene)]:
        if decision.action not in (Action.REFUSE, Action.WAIT) or decision.model not in scene.asked:
            kept.append(decision)
            continue
        target = _fallback_of(decision.model, scene)
        if target is None:
            kept.append(decision)
        elif decision.action is Action.REFUSE and _can_serve(target, scene):
            kept.append(_handed(decision, target, decision.code, f"{decision.text} Its fallback '{target}' serves."))
            scene.fallbacks[decision.model] = target
        elif decision.action is Action.WAIT and _is_late(decision.model, scene) and _free_slots(target, scene):
            text = f"it waits beyond its target ({decision.text}); its fallback '{target}' has a free slot"
            kept += [decision, _handed(decision, target, Code.WAIT_TOO_LONG, text)]
            scene.fallbacks[decision.model] = target
        else:
            kept.append(decision)
    scene.decisions = kept


def _handed(decision: Decision, target: str, code: Code, text: str) -> Decision:
    return Decision(
        at_ms=decision.at_ms,
        action=Action.FALLBACK,
        code=code,
        model=decision.model,
        text=text,
        terms={**decision.terms, "fallback": target},
    )


def _fallback_of(model: str, scene: Scene) -> str | None:
    offer = scene.fleet.offer(model) or scene.demand.away.get(model)
    target = offer.fallback if offer is not None else None
    if offer is None or target is None or target == model or target in scene.demand.quarantined:
        return None
    other = scene.fleet.offer(target)
    is_text = offer.kind is ModelKind.GENERATE and other is not None and other.kind is ModelKind.GENERATE
    return target if is_text else None


def _can_serve(target: str, scene: Scene) -> bool:
    offer = scene.fleet.offer(target)
    if offer is None or not offer.is_usable:
        return False
    needed = (target, offer.runner_model)
    return not any(each.action is Action.REFUSE and each.model in needed for each in scene.decisions)


def _is_late(model: str, scene: Scene) -> bool:
    """By the time that a load takes from now on it would have missed its target."""
    patience, offer = scene.patience_ms(model), scene.fleet.offer(model)
    return patience is not None and patience <= (offer.load_ms if offer is not None else 0)


def _free_slots(target: str, scene: Scene) -> int:
    offer = scene.fleet.offer(target)
    model = offer.runner_model if offer is not None else target
    runners = [view.runners.get(model) for view in scene.fleet.holders(model)]
    return sum(
        max(0, runner.slots - runner.in_flight)
        for runner in runners
        if runner is not None and runner.state is RunnerState.READY and runner.serves(target)
    )
