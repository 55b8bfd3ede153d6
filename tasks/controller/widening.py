"""Memory for one more slot of a ready runner whose jobs wait for one: rule 6 of `plan`, ahead of replicas. Pure.

A runner begins with one slot where its cache takes memory only as it is filled; its worker opens the others as long as
bytes are free. Where none are, idle models may leave for that, if they are worth less than the waiting that a slot
saves: with n open slots, mean run time s and Q waiting jobs, Q²s/2 · (1/n − 1/(n+1)), as for replicas. A batch job
counts as its arrival does in what a model is worth: nobody waits for it, and no slot is closed again behind a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.controller.decisions import Action, Code, Term
from tasks.controller.demand import classes_of
from tasks.controller.fleet_view import WorkerView
from tasks.controller.placing import mib
from tasks.controller.scene import Scene
from tasks.controller.victims import pick
from tasks.fleet import RunnerReport, RunnerState


def widen(model: str, scene: Scene, *, service_ms: float, shown_ms: int) -> bool:
    """True when a slot will be there soon: bytes for it are free, or idle models leave for it."""
    depth = scene.queues[model].depth
    weight = sum(each.depth * scene.rules.weight(each.priority) for each in classes_of(scene.queues[model]))
    for view, runner in _full(model, scene):
        shortfall = runner.slot_bytes - view.free_bytes
        terms: dict[str, Term] = {"slot_bytes": runner.slot_bytes, "free_bytes": view.free_bytes, "depth": depth}
        if shortfall <= 0:
            text = f"{view.id} opens one more slot; {mib(view.free_bytes)} are free"
            scene.say(Action.KEEP, Code.SLOTS_FREE, model, text, worker=view.id, terms=terms)
            return True
        if view.id in scene.claimed:
            continue
        victims = pick(scene.residents(view), shortfall, lambda each: not each.is_busy)
        if victims is None:
            continue
        n = runner.open_slots
        one_ms = service_ms or n * shown_ms / depth  # before any job has ended, the wait of the first tells the least
        saved_s = weight**2 * one_ms / 2000 * (1 / n - 1 / (n + 1))
        lost_s = sum(each.value_s for each in victims)
        if saved_s <= scene.rules.replica_gain * lost_s:
            continue
        for victim in victims:
            why = f"makes place for one more slot of '{model}'; keeping it was worth {victim.value_s:.2f} s of waiting"
            marks = {**terms, "value_s": round(victim.value_s, 3), "saved_s": round(saved_s, 3), "bytes": victim.bytes}
            scene.say(Action.EVICT, Code.MAKES_ROOM, victim.model, why, worker=view.id, terms=marks)
            scene.evict(view.id, victim.model)
        return True
    return False


def _full(model: str, scene: Scene) -> Iterator[tuple[WorkerView, RunnerReport]]:
    """Ready runners of the model with closed slots, all others of which are taken."""
    for view in scene.fleet.holders(model):
        runner = view.runners.get(model)
        if runner is None or runner.state is not RunnerState.READY or model in view.evict:
            continue
        if runner.closed_slots and runner.in_flight >= runner.open_slots:
            yield view, runner
