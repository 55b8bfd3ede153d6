"""Rule 7 of `plan`: when the waiting jobs of a model should go to its fallback model. Pure.

A refusal becomes a hand-over when the fallback can be served. Jobs that wait beyond their target, for a load or in the
line of a model whose slots are all taken, are handed over as far as the fallback has free slots in ready runners right
now; the others go on waiting for either of the two. Only jobs without a published token may be handed over: a stream
that began in one model's words never ends in another's. And only text goes to another model: vectors and scores of two
models can't be compared, so a client that got them from the wrong one would not even notice.
"""

from __future__ import annotations

import msgspec

from tasks.controller.adapters import obstacles
from tasks.controller.decisions import SLOTS_TAKEN, Action, Code, Decision
from tasks.controller.scene import Scene
from tasks.fleet import ModelKind


def hand_over(scene: Scene) -> None:
    """Replace refusals, and add to waits, where a fallback can serve; where it can't, a refusal says why."""
    kept: list[Decision] = []
    for decision in [*scene.decisions, *obstacles(scene)]:
        is_open = decision.action in (Action.REFUSE, Action.WAIT) or decision.code in SLOTS_TAKEN
        if not is_open or decision.model not in scene.asked:
            kept.append(decision)
            continue
        target = _fallback_of(decision.model, scene)
        if target is None:
            kept.append(decision)
            continue
        obstacle = _obstacle(decision.model, target, scene)
        if decision.action is Action.REFUSE and obstacle is not None:
            text = f"{decision.text.rstrip('.')}. Its fallback '{target}' can't answer either: {obstacle}."
            kept.append(msgspec.structs.replace(decision, text=text))
        elif decision.action is Action.REFUSE:
            text = f"{decision.text.rstrip('.')}. Its fallback '{target}' serves."
            kept.append(_handed(decision, target, decision.code, text))
            scene.fallbacks[decision.model] = target
        elif obstacle is None and _is_late(decision, scene) and (slots := _free_slots(target, scene)):
            text = f"it waits beyond its target ({decision.text}); its fallback '{target}' has {slots} free slots"
            kept += [decision, _handed(decision, target, Code.WAIT_TOO_LONG, text)]
            scene.fallbacks[decision.model] = target
            scene.fallback_slots[decision.model] = slots
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
    return None if offer is None else offer.fallback


def _obstacle(model: str, target: str, scene: Scene) -> str | None:
    """Why the fallback can't answer for the model, whenever; None when it can."""
    if target in scene.demand.quarantined:
        return scene.demand.quarantined[target].rstrip(".")
    offer, other = scene.fleet.offer(model) or scene.demand.away.get(model), scene.fleet.offer(target)
    if other is None:
        return "no live worker offers it"
    if any(each is not None and each.kind is not ModelKind.GENERATE for each in (offer, other)):
        return "only text may come from another model"
    if not other.is_usable:
        return (other.failure or "it can't be loaded").rstrip(".")
    needed = (target, other.runner_model)
    refusal = next((each for each in scene.decisions if each.action is Action.REFUSE and each.model in needed), None)
    return None if refusal is None else refusal.text.rstrip(".")


def _is_late(decision: Decision, scene: Scene) -> bool:
    """It has missed its target, or would by the time that a load takes from now on, if it needs one."""
    patience, offer = scene.patience_ms(decision.model), scene.fleet.offer(decision.model)
    load_ms = offer.load_ms if offer is not None and decision.action is Action.WAIT else 0
    return patience is not None and patience <= load_ms


def _free_slots(target: str, scene: Scene) -> int:
    offer = scene.fleet.offer(target)
    model = offer.runner_model if offer is not None else target
    views = [view for view in scene.fleet.holders(model) if model in view.runners]
    return sum(view.free_slots(model) for view in views if view.runners[model].serves(target))
