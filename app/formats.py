"""What form a client wants its answer in: `response_format` and `grammar` → AnswerFormat. Pure.

The bounds here are those that can be counted; whether a grammar compiles is for `app.grammar_check` to find out.
"""

from __future__ import annotations

import json

from app.schemas.openai import ResponseFormat, SamplingFields
from app.settings import ApiSettings
from tasks.errors import InvalidRequest
from tasks.generation import AnswerFormat, JsonObject
from tasks.grammars import json_object_format, json_schema_format
from tasks.json_schemas import nodes

MAX_PATTERN_CHARS = 1024


def answer_format(body: SamplingFields, limits: ApiSettings) -> AnswerFormat | None:
    """Raises InvalidRequest."""
    wanted = body.response_format
    is_free = wanted is None or wanted.type == "text"
    if body.grammar is not None:
        if not is_free:
            raise InvalidRequest("grammar: can't be combined with response_format.", param="grammar")
        return grammar_format(body.grammar, limits)
    return None if is_free or wanted is None else _json_format(wanted, limits)


def grammar_format(grammar: str, limits: ApiSettings) -> AnswerFormat:
    """Raises InvalidRequest."""
    if not 0 < len(grammar.encode()) <= limits.max_schema_bytes:
        raise InvalidRequest(f"grammar: must have 1 to {limits.max_schema_bytes} bytes.", param="grammar")
    return AnswerFormat(kind="gbnf", text=grammar)


def _json_format(wanted: ResponseFormat, limits: ApiSettings) -> AnswerFormat:
    if wanted.type == "json_object" and wanted.json_object_schema is None:
        return json_object_format()
    if wanted.type == "json_object":
        return schema_format(wanted.json_object_schema or {}, limits, param="response_format.schema")
    if wanted.json_schema is None:
        raise InvalidRequest(
            "response_format.json_schema: required with type json_schema.", param="response_format.json_schema"
        )
    return schema_format(
        wanted.json_schema.definition,
        limits,
        param="response_format.json_schema.schema",
        is_lenient=wanted.json_schema.strict is False,
    )


def schema_format(schema: JsonObject, limits: ApiSettings, *, param: str, is_lenient: bool = False) -> AnswerFormat:
    """A schema within bounds. Raises InvalidRequest, which blames `param`."""

    def refuse(problem: str) -> InvalidRequest:
        return InvalidRequest(f"{param}: {problem}", param=param)

    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except RecursionError:
        raise refuse(f"at most {limits.max_schema_depth} levels.") from None
    except UnicodeEncodeError:
        raise refuse("not valid Unicode: half of a surrogate pair.") from None
    except ValueError:
        raise refuse("NaN and Infinity are no JSON.") from None
    if size > limits.max_schema_bytes:
        raise refuse(f"has {size} bytes; at most {limits.max_schema_bytes}.")
    for depth, node in nodes(schema):
        if depth > limits.max_schema_depth:
            raise refuse(f"at most {limits.max_schema_depth} levels of objects and arrays in each other.")
        reference, pattern = node.get("$ref"), node.get("pattern")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise refuse(f"only references within the schema (#/...), and this is {reference[:80]!r}.")
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARS:
            raise refuse(f"a pattern has {len(pattern)} characters; at most {MAX_PATTERN_CHARS}.")
    return json_schema_format(schema, is_lenient=is_lenient)
