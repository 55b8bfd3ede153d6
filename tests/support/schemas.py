"""Random JSON schemas out of the keywords that are enforced exactly."""

from __future__ import annotations

from hypothesis import strategies as st

Schemas = st.SearchStrategy[dict]

_BOUND = st.integers(-300, 300)
_NAMES = st.sampled_from(["a", "b", "name", "ünï", 'q"uote', "line\nbreak", "$ref", ""])
_LENGTHS = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(sorted)
_CONSTANTS = st.one_of(st.none(), st.booleans(), _BOUND, st.sampled_from(["x", "ü🙂", "a\\b", ""]))


def _integer(bounds: list[int], multiple: int | None) -> dict:
    schema: dict = {"type": "integer", "minimum": bounds[0], "maximum": bounds[1]}
    return schema if multiple is None else schema | {"multipleOf": multiple, "maximum": bounds[1] + multiple}


def _object(properties: dict[str, dict], optional: set[str]) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


_integers = st.builds(_integer, st.tuples(_BOUND, _BOUND).map(sorted), st.one_of(st.none(), st.sampled_from([2, 3, 7])))
_numbers = (
    st.tuples(_BOUND, _BOUND)
    .map(sorted)
    .map(lambda bounds: {"type": "number", "minimum": bounds[0], "exclusiveMaximum": bounds[1] + 1})
)
_strings = _LENGTHS.map(lambda lengths: {"type": "string", "minLength": lengths[0], "maxLength": lengths[1]})
_patterns = st.sampled_from(["^[a-c]{1,3}$", "^(ja|nein)$", "^\\d{2}-\\d{2}$", "^ü+$"]).map(
    lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 12}
)
_enums = st.lists(_CONSTANTS, min_size=1, max_size=4).map(lambda values: {"enum": values})
_leaves = st.one_of(
    _integers, _numbers, _strings, _patterns, _enums, st.just({"type": "boolean"}), st.just({"type": "null"})
)


def _grown(inner: Schemas) -> Schemas:
    arrays = st.builds(
        lambda items, lengths: {"type": "array", "items": items, "minItems": lengths[0], "maxItems": lengths[1]},
        inner,
        _LENGTHS,
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    )
    objects = st.builds(_object, st.dictionaries(_NAMES, inner, max_size=4), st.sets(_NAMES, max_size=3))
    choices = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(arrays, tuples, objects, choices)


schemas: Schemas = st.recursive(_leaves, _grown, max_leaves=6)
