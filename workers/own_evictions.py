"""What a worker says when it sends a runner away that the controller did not name. Pure: values in, a decision out."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.controller.decisions import Action, Code, Decision, Term
from tasks.fleet import may_run_on
from tasks.jobs import WorkerId
from workers.model_files import ModelFile


def outdated_eviction(
    loaded: ModelFile,
    current: ModelFile | None,
    *,
    worker: WorkerId,
    device: str,
    now_ms: int,
    outdated_for_ms: int,
    in_flight: int,
) -> Decision:
    """The folder's newest scan has the model otherwise than the runner `loaded` it, or no longer."""
    if current is None:
        text = "its file is gone"
    elif not may_run_on(current.devices, device):
        text = f"it may run on {', '.join(current.devices)} only, and is on {device}"
    else:
        changes = [
            f"{name} {before} → {after}"
            for name, before, after in (
                ("context_length", loaded.context_length, current.context_length),
                ("slots", loaded.slots, current.slots),
                ("kv_type", loaded.kv_type, current.kv_type),
            )
            if before != after
        ]
        text = f"it is loaded anew: {', '.join(changes) or 'a file or a setting of it has changed'}"
    terms: dict[str, Term] = {"outdated_for_ms": outdated_for_ms, "in_flight": in_flight}
    return _eviction(Code.OUTDATED, loaded.id, worker, now_ms, text, terms)


def unheld_eviction(model: str, *, worker: WorkerId, now_ms: int, size: int) -> Decision:
    """No placement holds it any more, and another one needs its bytes."""
    text = "no placement holds it any more, and its bytes are needed"
    return _eviction(Code.NOT_HELD, model, worker, now_ms, text, {"bytes": size})


def _eviction(code: Code, model: str, worker: WorkerId, now_ms: int, text: str, terms: Mapping[str, Term]) -> Decision:
    return Decision(at_ms=now_ms, action=Action.EVICT, code=code, model=model, worker=worker, text=text, terms=terms)
