"""`keepwarm quarantine`: what is kept away because it kills what serves it."""

from __future__ import annotations

from datetime import datetime

from app.cli.render import duration_text, print_table, say
from tasks.generation import JsonObject

SHORT_ID_CHARS = len("prompt:") + 12  # enough of a digest to tell it from others, and to lift it


def show_quarantine(entries: list[JsonObject], *, now: datetime) -> None:
    if not entries:
        say("Nothing is in quarantine.")
        return
    print_table(["ID", "MODEL", "FOR", "WORKERS", "REASON"], [_row(entry, now) for entry in entries])


def show_lifted(entry: JsonObject) -> None:
    say(f"{_short(entry)} is free again.")


def _row(entry: JsonObject, now: datetime) -> list[str]:
    left_s = (datetime.fromisoformat(entry["until"]) - now).total_seconds()
    return [_short(entry), entry["model"], duration_text(left_s), " ".join(entry["workers"]), entry["reason"]]


def _short(entry: JsonObject) -> str:
    suspect_id: str = entry["id"]
    return suspect_id[:SHORT_ID_CHARS] if entry["kind"] == "prompt" else suspect_id
