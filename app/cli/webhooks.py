"""`keepwarm webhooks`: ends that nobody could be told."""

from __future__ import annotations

from datetime import datetime

from app.cli.render import duration_text, print_table, say
from tasks.generation import JsonObject


def show_dead_webhooks(entries: list[JsonObject], *, now: datetime) -> None:
    if not entries:
        say("No webhook was given up.")
        return
    columns = ["OF", "ENDED", "GIVEN UP", "ATTEMPTS", "LAST", "TO"]
    print_table(columns, [_row(entry, now) for entry in entries])


def _row(entry: JsonObject, now: datetime) -> list[str]:
    ago_s = (now - datetime.fromisoformat(entry["given_up_at"])).total_seconds()
    return [
        entry["id"],
        entry["state"] or "",
        f"{duration_text(ago_s)} ago",
        str(entry["attempts"]),
        entry["last_status"],
        entry["origin"] or "",
    ]
