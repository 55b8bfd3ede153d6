"""`response_format` and `grammar`: what reaches the job, and what is refused before anything compiles it."""

from __future__ import annotations

import json

import pytest

from app.formats import answer_format
from app.schemas.openai import SamplingFields
from app.settings import ApiSettings
from tasks.errors import InvalidRequest
from tasks.generation import AnswerFormat
from tasks.grammars import json_object_format

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def formed(limits: ApiSettings | None = None, **fields) -> AnswerFormat | None:
    return answer_format(SamplingFields.model_validate({"model": "m"} | fields), limits or ApiSettings())


def schema_format(schema: object, **fields) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema} | fields}


def nested(levels: int) -> dict:
    schema: dict = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("fields", [{}, {"response_format": None}, {"response_format": {"type": "text"}}])
def test_free_text_has_no_format(fields: dict):
    assert formed(**fields) is None


def test_json_object_in_both_forms():
    assert formed(response_format={"type": "json_object"}) == json_object_format()
    with_schema = formed(response_format={"type": "json_object", "schema": SCHEMA})
    assert with_schema == formed(response_format=schema_format(SCHEMA))


@pytest.mark.parametrize(("strict", "is_lenient"), [(None, False), (True, False), (False, True)])
def test_only_explicit_laxness_ignores_keywords(strict: bool | None, is_lenient: bool):
    made = formed(response_format=schema_format(SCHEMA, strict=strict))
    assert made is not None
    assert json.loads(made.text)["x-guidance"]["lenient"] is is_lenient


def test_client_cannot_set_the_compilers_options():
    made = formed(response_format=schema_format(SCHEMA | {"x-guidance": {"whitespace_pattern": "x*"}}))
    assert made == formed(response_format=schema_format(SCHEMA))


def test_properties_may_have_the_names_of_keywords():
    assert formed(response_format=schema_format({"properties": {"$ref": {}, "pattern": {}, "const": {}}}))
    assert formed(response_format=schema_format({"const": {"$ref": "http://x.example"}}))


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (nested(65), "at most 64 levels"),
        ({"description": "é" * 40_000}, "has 80019 bytes; at most 65536"),
        ({"items": [{"$ref": "http://x.example/y"}]}, r"only references within the schema"),
        ({"type": "string", "pattern": "a" * 1025}, "1025 characters; at most 1024"),
        ({"properties": {"default": nested(63)}}, "at most 64 levels"),
        ({"properties": {"const": {"$ref": "http://x.example/y"}}}, r"only references within the schema"),
        ({"$defs": {"enum": {"pattern": "a" * 1025}}}, "1025 characters; at most 1024"),
        ({"const": "\ud800"}, "surrogate"),
        ({"const": float("inf")}, "NaN and Infinity"),
    ],
)
def test_hostile_schema_is_refused_with_numbers(schema: dict, problem: str):
    with pytest.raises(InvalidRequest, match=problem) as caught:
        formed(response_format=schema_format(schema))
    assert caught.value.param == "response_format.json_schema.schema"


def test_schema_at_the_limits_passes():
    assert formed(response_format=schema_format(nested(64)))


def test_grammar_is_bounded_and_stands_alone():
    assert formed(grammar='root ::= "a"') == AnswerFormat(kind="gbnf", text='root ::= "a"')
    with pytest.raises(InvalidRequest, match="1 to 10 bytes"):
        formed(ApiSettings(max_schema_bytes=10), grammar='root ::= "a"')
    with pytest.raises(InvalidRequest, match="combined"):
        formed(grammar='root ::= "a"', response_format={"type": "json_object"})


def test_schema_is_required_where_it_is_announced():
    with pytest.raises(InvalidRequest, match="required"):
        formed(response_format={"type": "json_schema"})
