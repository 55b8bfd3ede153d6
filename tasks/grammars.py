"""Answer formats as llguidance understands them, and the bounds within which it may work on them.

Front and runner share this module, so that a format which the front let pass compiles in the runner. Grammars come from
clients: the front tries each in a process of its own (`app.grammar_trial`), and the bounds hold in both places.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from tasks.gbnf import InvalidGrammar, gbnf_to_lark
from tasks.generation import AnswerFormat, JsonObject
from tasks.json_schemas import without_wild_patterns

# About the time of one step, by llguidance's own figures: 200 000 lexer fuel are 14 ms, 50 000 items 2.5 ms. What those
# don't bound is a token of an ambiguous grammar, whose time grows with the third power of the items in its row, while
# all that the runner computes waits: 500 of them cost 3 to 14 ms, 1000 up to 44, the library's 2000 up to 300.
# A schema needs 4 per optional property of one object and 1 per option of anyOf; most have fewer than 50 in all.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=500,
    max_lexer_states=50_000,  # 1 to 2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,  # they would quote the client's grammar into logs
)
# Between two tokens of JSON: nothing, a blank, or a new line and its indentation. A model may love blanks.
_WHITESPACE = r"[ ]|\n[ ]{0,16}"
# Where only one continuation is possible, llguidance would allow only its own spelling of it in tokens; the model's is
# better, and the draw stays that of the model among all that is allowed.
NO_FORCING = '%llguidance {"no_forcing": true}\n'
_ANY_OBJECT: JsonObject = {"type": "object"}
# What the library says, by a part of it, and what a client can do about it.
_ADVICE = (
    ("NoExtensionBias", "no text fits it: a rule leads back to itself before it says anything"),
    ("Unimplemented keys", "{}; leave them out, or have them ignored with strict: false"),
    ("Unknown format", "{}; leave it out, or have it ignored with strict: false"),
    ("Current row has", "too much may follow at one place; at most 120 optional properties or 500 options go together"),
    ("oneOf constraints", "oneOf can't be enforced where several of its options may fit; send anyOf"),
)


def json_object_format() -> AnswerFormat:
    """Any JSON object."""
    return json_schema_format(_ANY_OBJECT, is_lenient=False)


def json_schema_format(schema: JsonObject, *, is_lenient: bool) -> AnswerFormat:
    """JSON that is valid by `schema`. Lenient: keywords that can't be enforced are ignored instead of refused."""
    options = {"whitespace_pattern": _WHITESPACE, "lenient": is_lenient}
    if is_lenient:
        schema = without_wild_patterns(schema)
    return AnswerFormat(kind="json_schema", text=json.dumps({**schema, "x-guidance": options}, ensure_ascii=False))


def grammar_of(answer_format: AnswerFormat) -> str:
    """In llguidance's own form. Raises InvalidGrammar."""
    rules = gbnf_to_lark(answer_format.text) if answer_format.kind == "gbnf" else f"start: %json {answer_format.text}"
    return LLMatcher.grammar_from_lark(NO_FORCING + rules)


def problem_of(answer_format: AnswerFormat) -> str:
    """Why this format can't be used; empty when it can. May take long, take much memory, or crash the process."""
    try:
        return _problem(grammar_of(answer_format))
    except InvalidGrammar as invalid:
        return str(invalid)


def problem_among(schemas: Sequence[AnswerFormat]) -> tuple[int | None, str]:
    """The same for JSON schemas that become one grammar, as the tools of a request do: each may be fine, and all
    together too much. Which one is to blame, None: none alone; and why."""
    rules = [f"part_{number}: %json {schema.text}" for number, schema in enumerate(schemas)]
    start = " | ".join(f'"{number}" part_{number}' for number in range(len(schemas)))
    problem = _problem(NO_FORCING + "\n".join([*rules, f"start: {start}"]))
    if not problem:
        return None, ""
    for number, schema in enumerate(schemas):
        if own := problem_of(schema):
            return number, own
    return None, problem


def _problem(grammar: str) -> str:
    """Does what a runner will do until the first token, with a vocabulary of bytes; and until the first property of an
    object, where most may follow."""
    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if not matcher.is_error() and matcher.validate_tokens([ord("{")]):
        matcher.consume_token(ord("{"))
    return reason_of(matcher.get_error()) if matcher.is_error() else ""


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")


def reason_of(message: str) -> str:
    """What a library's error means for whoever wrote the format. The lines after the first show the grammar, and what
    stands before it is our own wrapping."""
    lines = message.strip().split("failed to compile JSON schema: ")[-1].splitlines()
    reason = lines[0][:300] if lines else "it gave no reason"
    if reason.endswith("regex parse error:"):
        details = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return "a pattern or a length can't be enforced: " + "; ".join(details)
    return next((advice.format(reason) for sign, advice in _ADVICE if sign in reason), reason)
