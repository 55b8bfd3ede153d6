"""What `keepwarm up` shows at first: a model that exists, a line to copy, a question. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from tasks.generation import JsonObject

DEMO_MARK = "demo"
QUESTION = "What is Keepwarm?"
MAX_TOKENS = 96


def choose_model(models: Sequence[JsonObject]) -> str | None:
    """The demo model; else the one that answers soonest. Models that failed to load don't count."""
    usable = [model for model in models if model["keepwarm"]["state"] != "failed"]
    if not usable:
        return None
    return str(min(usable, key=_rank)["id"])


def _rank(model: JsonObject) -> tuple[bool, bool, bool, int, str]:
    details = model["keepwarm"]
    names = [model["id"], *details["aliases"]]
    is_demo = any(DEMO_MARK in name.lower() for name in names)
    is_adapter = details.get("base") is not None
    return (not is_demo, details["state"] != "warm", is_adapter, details["bytes"], model["id"])


def first_question(model: str) -> JsonObject:
    return {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "priority": "interactive",
    }


def curl_line(url: str, model: str) -> str:
    """A command to copy that streams an answer."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Tell me a story."}]}
    return " ".join(
        [
            "curl -N",
            f"{url}/v1/chat/completions",
            "-H 'Content-Type: application/json'",
            f"-d {shlex.quote(json.dumps(body))}",
        ]
    )


def no_model_text() -> str:
    return (
        "There is no model yet. Put .gguf files into a folder and name it with --models-dir or "
        "KEEPWARM_MODELS_DIR; they are found while Keepwarm runs."
    )
