"""What routes add to the OpenAPI document: errors in their two shapes, and answers that are no JSON.

A range stands for the statuses in it, since any of them has the same shape; `app.error_handlers.STATUS` has them all.
"""

from __future__ import annotations

from typing import Any

from app.schemas.errors import OpenAIError, Problem

Responses = dict[int | str, dict[str, Any]]

_REFUSED = (
    "Refused, with the reason: 400 what was sent can't be used, 403 and 421 it came from another origin, 404 there is "
    "no such thing, 409 its state forbids it, 413 too large, 422 never possible as asked, 429 too much waits already "
    "(retry-after says when to come back)."
)
_FAILED = (
    "Failed: 500 the job or Keepwarm itself broke, 503 store or model are away for now (retry-after), 504 out of time."
)


def _problem(description: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {"description": description, "content": content}


OPENAI_ERRORS: Responses = {
    "4XX": {"description": _REFUSED, "model": OpenAIError},
    "5XX": {"description": _FAILED, "model": OpenAIError},
}
NATIVE_ERRORS: Responses = {"4XX": _problem(_REFUSED), "5XX": _problem(_FAILED)}


def other_answer(media_type: str, description: str) -> dict[str, Any]:
    """A 200 whose body is a text of another kind than JSON."""
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def event_stream(description: str) -> dict[str, Any]:
    """A 200 of server-sent events. OpenAPI 3.1 has no word for them; as in 3.2, the schema is that of one event."""
    event = {
        "type": "object",
        "required": ["data"],
        "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    }
    return {"description": description, "content": {"text/event-stream": {"schema": event}}}


SSE_TOO: Responses = {200: event_stream("The whole answer, or its pieces as they come with `stream: true`.")}
