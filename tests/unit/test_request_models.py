"""No list or object that a client may send is looked at beyond its first wrong item."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import Field, TypeAdapter

from app.main import create_app
from app.settings import ApiSettings
from tests.support.front_fakes import FakeBackend

COLLECTIONS = {"list", "set", "frozenset", "tuple", "generator", "dict"}
ITEMS = ("items_schema", "keys_schema", "values_schema")
CANNOT_FAIL = [
    {},
    {"items_schema": {"type": "any"}},
    {"keys_schema": {"type": "str"}, "values_schema": {"type": "any"}},
]
NOT_VALIDATED = {"metadata", "serialization", "json_schema_input_schema"}


def request_bodies() -> dict[str, Any]:
    """The type of the body that each route takes, by the route."""
    app = create_app(ApiSettings(), FakeBackend().backend())
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    return {
        f"{' '.join(sorted(route.methods or ()))} {route.path}": Annotated[
            field.field_info.annotation, field.field_info
        ]
        for route in routes
        if isinstance(route, APIRoute) and (field := route.body_field) is not None
    }


def patient(schema: object, place: str = "") -> Iterator[str]:
    """Where pydantic's core schema has a collection that goes on after an item's error."""
    if isinstance(schema, list | tuple):
        for each in schema:
            yield from patient(each, place)
    elif isinstance(schema, dict):
        is_node = isinstance(schema.get("type"), str)  # else the fields of a model, or the choices of a union, by name
        if is_node and schema["type"] in COLLECTIONS and not schema.get("fail_fast"):
            items = {name: schema[name] for name in ITEMS if name in schema}
            yield from [] if items in CANNOT_FAIL else [place]
        for name, value in schema.items():
            if not (is_node and name in NOT_VALIDATED):
                yield from patient(value, place if is_node else f"{place}.{name}")


@pytest.mark.parametrize(("route", "body"), request_bodies().items(), ids=request_bodies())
def test_every_collection_in_a_body_ends_at_its_first_wrong_item(route: str, body: Any):
    assert not list(patient(TypeAdapter(body).core_schema))


def test_the_walk_finds_collections_at_every_depth():
    slow = TypeAdapter(str | Annotated[list[dict[str, int] | None], Field(fail_fast=True)]).core_schema
    assert len(list(patient(slow))) == 1
    assert len(request_bodies()) >= 7
