"""`keepwarm ls`: the models that can be asked."""

from __future__ import annotations

from app.cli.render import bytes_text, print_table, say
from tasks.generation import JsonObject


def show_models(models: list[JsonObject]) -> None:
    if not models:
        say("No worker offers a model. Put .gguf files into the folder that KEEPWARM_MODELS_DIR names.")
        return
    print_table(["MODEL", "STATE", "MEMORY", "CONTEXT", "SLOTS", "ALIASES", "NOTE"], [_row(model) for model in models])


def _row(model: JsonObject) -> list[str]:
    details = model["keepwarm"]
    return [
        model["id"],
        details["state"],
        bytes_text(details["bytes"]),
        str(details["context_length"]),
        str(details["slots"]),
        ", ".join(details["aliases"]),
        details["reason"] or "",
    ]
