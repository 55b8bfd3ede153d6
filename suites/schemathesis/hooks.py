"""Let generated requests reach what lies behind their first check: a model that exists, and answers that end soon."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

MODELS = {
    "/v1/embeddings": os.environ["SUITE_EMBEDDING_MODEL"],
    "/v1/rerank": os.environ["SUITE_RERANK_MODEL"],
}
CHAT_MODEL = os.environ["SUITE_CHAT_MODEL"]
MAX_TOKENS = 4


def is_good_name(name: str) -> bool:
    """Whether the schema allows it; a name that is wrong on purpose stays wrong."""
    return 0 < len(name) <= 256


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and is_good_name(body["model"]):
        body["model"] = MODELS.get(context.operation.path, CHAT_MODEL)
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(name), int) and body[name] > MAX_TOKENS:
                body[name] = MAX_TOKENS
        if context.operation.path == "/v1/responses":
            body.setdefault("max_output_tokens", MAX_TOKENS)
        elif context.operation.path not in MODELS:
            body.setdefault("max_tokens", MAX_TOKENS)
        if context.operation.path == "/v1/jobs" and body.get("messages") is None and body.get("prompt") is None:
            body["prompt"] = "Hello"  # a job must have one of them, which its schema doesn't say
    return body
