"""Walking through a client's JSON schema. Pure.

A schema holds schemas, but also plain data, and maps whose keys are the client's own names: there `default` is a
property like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tasks.generation import JsonObject

_DATA = frozenset({"const", "enum", "default", "examples"})
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_BEYOND_AUTOMATA = re.compile(r"\(\?<?[=!]|\\[1-9]")  # look-around and back-references


def nodes(schema: JsonObject) -> Iterator[tuple[int, JsonObject]]:
    """Every object in a schema with its depth, from 1; the data in it is left out."""
    pending: list[tuple[int, object, bool]] = [(1, schema, False)]
    while pending:
        depth, node, is_map = pending.pop()
        if isinstance(node, dict):
            yield depth, {} if is_map else node
            pending += [(depth + 1, value, inner) for _, value, inner in _parts(node, is_map)]
        elif isinstance(node, list):
            pending += [(depth + 1, value, False) for value in node]


def without_wild_patterns(node: Any, *, is_map: bool = False) -> Any:
    """A schema without the patterns that no automaton can follow. Recursive: `node` must be of bounded depth."""
    if isinstance(node, list):
        return [without_wild_patterns(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept = node | {key: without_wild_patterns(value, is_map=inner) for key, value, inner in _parts(node, is_map)}
    if not is_map and isinstance(pattern := kept.get("pattern"), str) and _BEYOND_AUTOMATA.search(pattern):
        del kept["pattern"]
    return kept


def _parts(node: JsonObject, is_map: bool) -> Iterator[tuple[str, Any, bool]]:
    """The members that may hold schemas: their keys, values, and whether the keys in these are names."""
    for key, value in node.items():
        if is_map or key not in _DATA:
            yield key, value, not is_map and key in _MAPS
