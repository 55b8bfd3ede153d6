"""`keepwarm why MODEL`: how a model stands, and what the controller decided about it."""

from __future__ import annotations

from datetime import datetime

from app.cli.render import duration_text, print_table, say
from tasks.generation import JsonObject


def show_why(model: JsonObject, decisions: list[JsonObject], *, now: datetime) -> None:
    """`decisions` are the newest first."""
    details = model["keepwarm"]
    say(f"{model['id']} is {details['state']}" + (f": {details['reason']}" if details["reason"] else "."))
    if details.get("base"):
        say(f"It is a LoRA adapter that the runner of {details['base']} serves; what is decided is decided of that.")
    if not decisions:
        say("The controller has decided nothing about it.")
        return
    rows = [_row(decision, now, of=model["id"]) for decision in decisions]
    print_table(["AGO", "DECISION", "WORKER", "WHY"], rows)


def _row(decision: JsonObject, now: datetime, *, of: str) -> list[str]:
    """`of`: the model that was asked about; a decision about its base says so."""
    ago_s = (now - datetime.fromisoformat(decision["at"])).total_seconds()
    action = decision["action"] if decision["model"] == of else f"{decision['action']} {decision['model']}"
    reason = f"{decision['reason']}: {decision['text']}"
    return [duration_text(max(0.0, ago_s)), action, decision["worker"] or "", reason]
