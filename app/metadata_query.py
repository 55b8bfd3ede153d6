"""`?metadata[key]=value`: pairs in the query string, as OpenAI's SDKs write an object there. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tasks.errors import InvalidRequest

MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512

_PAIR = re.compile(r"metadata\[(.*)\]", re.DOTALL)

# For the OpenAPI document: no parameter of a function can say this.
PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "description": "Only jobs whose metadata hold these pairs.",
    "schema": {
        "type": "object",
        "maxProperties": MAX_PAIRS,
        "propertyNames": {"maxLength": MAX_KEY_CHARS},
        "additionalProperties": {"type": "string", "maxLength": MAX_VALUE_CHARS},
    },
}


def metadata_pairs(query: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Raises InvalidRequest."""
    pairs: dict[str, str] = {}
    for name, value in query:
        if not name.startswith("metadata"):
            continue
        if (match := _PAIR.fullmatch(name)) is None:
            raise InvalidRequest("metadata: write metadata[key]=value, once per pair.", param="metadata")
        key = match[1]
        if key in pairs:
            raise InvalidRequest(f"metadata[{key[:MAX_KEY_CHARS]}]: sent more than once.", param="metadata")
        if len(key) > MAX_KEY_CHARS or len(value) > MAX_VALUE_CHARS or len(pairs) == MAX_PAIRS:
            raise InvalidRequest(
                f"metadata: at most {MAX_PAIRS} pairs, keys of {MAX_KEY_CHARS} characters and values of "
                f"{MAX_VALUE_CHARS}, as jobs have them.",
                param="metadata",
            )
        pairs[key] = value
    return pairs
