"""`keepwarm why MODEL`: how a model stands, and what the controller decided about it."""

from __future__ import annotations

from datetime import datetime

from app.cli.render import duration_text, print_table, say
from tasks.generation import JsonObject


def show_why(model: JsonObject, decisions: list[JsonObject], *, now: datetime) -> None:
    """`decisions` are the newest first."""
    details = model["keepwarm"]
    say(f"{model['id']} is {details['state']}" + (f": {details['reason']}" if details["reason"] else "."))
    if not decisions:
        say("The controller has decided nothing about it.")
        return
    print_table(["AGO", "DECISION", "WORKER", "WHY"], [_row(decision, now) for decision in decisions])


def _row(decision: JsonObject, now: datetime) -> list[str]:
    ago_s = (now - datetime.fromisoformat(decision["at"])).total_seconds()
    reason = f"{decision['reason']}: {decision['text']}"
    return [duration_text(max(0.0, ago_s)), decision["action"], decision["worker"] or "", reason]
