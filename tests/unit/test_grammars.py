"""Grammar constraints in the step loop, under logits that know nothing: what comes out is valid all the same."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence as Items

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import GrammarFailed
from tasks.generation import AnswerFormat, GenerationRequest, SamplingParams
from tasks.grammars import json_object_format, json_schema_format, problem_of
from tests.support.generating import Heard, listen
from tests.support.schemas import schemas
from workers.engine.backend import Slice
from workers.engine.fake import VOCABULARY, FakeBackend
from workers.engine.fake_behaviour import FakeBehaviour
from workers.engine.grammars import Grammars
from workers.engine.step_loop import StepLoop
from workers.engine.tool_formats import GENERIC
from workers.messages import Generate

GRAMMARS = Grammars(VOCABULARY)
BRACKETS = AnswerFormat(kind="gbnf", text='root ::= "(" root? ")" [ü🙂]?')
# Without a preference for the end, text of unbounded length would seldom end.
FOND_OF_ENDS = dict.fromkeys([*VOCABULARY.eog_ids, *b'"}]'], 3.0)


class Noise(FakeBackend):
    """Random logits, the same after the same tokens."""

    def __init__(self) -> None:
        super().__init__(2, FakeBehaviour())

    def decode(self, batch: Items[Slice], adapter: str = "") -> np.ndarray:
        super().decode(batch, adapter)
        rows = []
        for part in batch:
            seed = zlib.crc32(np.array(self._kv[part.slot]).tobytes())
            logits = np.random.default_rng(seed).standard_normal(len(VOCABULARY)).astype(np.float32)
            logits[list(FOND_OF_ENDS)] += list(FOND_OF_ENDS.values())
            rows.append(logits)
        return np.array(rows, dtype=np.float32)


def generated(what: GenerationRequest, forced: tuple[int, ...] = (), emitted: str = "") -> Heard:
    loop = StepLoop(Noise(), slots=2, context_length=4096, prefill_chunk=512)
    message = Generate(key=1, request=what, forced_ids=forced, emitted_text=emitted)
    loop.add(loop.sequence(message, (5,), GRAMMARS.constraint(what, GENERIC)))
    heard: dict[int, Heard] = {}
    while loop.has_work:
        listen(loop, heard)
    return heard[1]


def request(answer_format: AnswerFormat, seed: int, **params) -> GenerationRequest:
    sampling = SamplingParams(**{"seed": seed, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0} | params)
    return GenerationRequest(model="m", prompt="?", answer_format=answer_format, sampling=sampling, max_tokens=400)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(schema=schemas, seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 1.0, 3.0]))
def test_whatever_the_model_wants_the_answer_is_valid_by_the_schema(schema: dict, seed: int, temperature: float):
    answer_format = json_schema_format(schema, is_lenient=False)
    if (problem := problem_of(answer_format)) != "":  # an honest answer too
        assert any(reason in problem for reason in ("nsatisfiable", "regex for")), problem
        return
    heard = generated(request(answer_format, seed, temperature=temperature, top_k=0))
    if heard.done.finish_reason == "stop":
        jsonschema_rs.validate(schema, json.loads(heard.text))
    else:
        assert heard.done.finish_reason == "length"


def test_most_random_schemas_are_answered_to_their_end():
    ends = [generated(request(json_schema_format(schema, is_lenient=False), 7)).done.finish_reason for schema in EASY]
    assert ends == ["stop"] * len(EASY)


EASY: list[dict] = [
    {"type": "integer", "minimum": 3, "maximum": 17},
    {"type": "number", "minimum": -1, "maximum": 1},
    {"enum": ["ü🙂", None, 4]},
    {"type": "string", "maxLength": 5},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "string", "format": "date-time"},
    {
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "maxProperties": 1}},
        "$ref": "#/$defs/node",
        "additionalProperties": False,
    },
]


@pytest.mark.parametrize("params", [{}, {"temperature": 0}, {"typical_p": 0.5}, {"repeat_penalty": 1.3}])
@pytest.mark.parametrize(
    "answer_format",
    [BRACKETS, json_schema_format({"type": "array", "items": {"type": "integer", "maximum": 99}}, is_lenient=False)],
)
def test_resume_at_every_token_equals_the_undisturbed_text(answer_format: AnswerFormat, params: dict):
    what = request(answer_format, 11, **params)
    whole = generated(what)
    assert len(whole.outputs) >= 2
    for published in range(len(whole.outputs) + 1):
        before = Heard(whole.outputs[:published])
        rest = generated(what, before.ids, before.text)
        assert before.text + rest.text == whole.text
        assert rest.done == whole.done


def test_schema_may_have_a_hundred_optional_properties_and_no_thousand():
    def schema(count: int) -> dict:
        return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}}

    assert problem_of(json_schema_format(schema(100), is_lenient=False)) == ""
    assert "at most 120 optional properties" in problem_of(json_schema_format(schema(1000), is_lenient=False))


def test_schema_may_have_hundreds_of_options():
    options = [{"type": "object", "properties": {"kind": {"const": n}}, "required": ["kind"]} for n in range(400)]
    assert problem_of(json_schema_format({"anyOf": options}, is_lenient=False)) == ""


def test_ambiguous_grammar_ends_its_own_answer_before_it_slows_others():
    rules = """root ::= e
e ::= e e | "a" | "aa" | e "a" e | x
x ::= e e e | "a"
"""
    hostile = AnswerFormat(kind="gbnf", text=rules)
    what = GenerationRequest(model="m", prompt="?", answer_format=hostile, max_tokens=500, ignore_eos=True)
    heard = generated(what)
    assert heard.done.error is not None
    assert "too much may follow at one place" in heard.done.error.message
    assert 20 < len(heard.ids) < 200


def test_json_object_is_one():
    heard = generated(request(json_object_format(), 3))
    assert heard.text.startswith("{")
    if heard.done.finish_reason == "stop":
        assert isinstance(json.loads(heard.text), dict)


def test_characters_of_several_tokens_come_whole():
    heard = generated(request(AnswerFormat(kind="gbnf", text="root ::= [ß本🙂]{20}"), 5))
    assert len(heard.text) == 20
    assert set(heard.text) <= set("ß本🙂")


def test_end_token_is_no_way_out_of_an_unfinished_answer():
    what = request(AnswerFormat(kind="gbnf", text='root ::= "abc" "d"*'), 1, logit_bias={str(296): 100.0})
    assert generated(what).text == "abc"


def test_ignored_end_does_not_prolong_a_complete_answer():
    what = GenerationRequest(
        model="m",
        prompt="?",
        answer_format=AnswerFormat(kind="gbnf", text='root ::= "abc"'),
        ignore_eos=True,
        max_tokens=50,
    )
    heard = generated(what)
    assert (heard.text, heard.done.finish_reason) == ("abc", "stop")


def test_same_format_is_compiled_once():
    grammars = Grammars(VOCABULARY)
    first, second = (grammars.constraint(request(BRACKETS, 1), GENERIC) for _ in range(2))
    assert first is not None and second is not None
    first.take(ord("("))
    assert second.allows(ord("(")) and not second.allows(ord(")"))
    assert len(grammars._compiled) == 1


@pytest.mark.parametrize(
    ("answer_format", "problem"),
    [
        (json_schema_format({"not": {}}, is_lenient=False), "Unimplemented"),
        (json_schema_format({"type": "integer", "minimum": 2, "maximum": 1}, is_lenient=False), "Unsatisfiable"),
        (AnswerFormat(kind="gbnf", text="root ::= nothing"), "not defined"),
    ],
)
def test_format_that_cannot_be_kept_is_refused(answer_format: AnswerFormat, problem: str):
    with pytest.raises(GrammarFailed, match=problem):
        GRAMMARS.constraint(request(answer_format, 1), GENERIC)


@pytest.mark.parametrize(
    ("answer_format", "reason"),
    [
        (AnswerFormat(kind="gbnf", text='root ::= root "a"'), "no text fits it"),
        (json_schema_format({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, is_lenient=False), "no text"),
        (json_schema_format({"pattern": "("}, is_lenient=True), "can't be enforced: unclosed group"),
        (json_schema_format({"uniqueItems": True}, is_lenient=False), "ignored with strict: false"),
        (json_schema_format({"type": "string", "format": "phone"}, is_lenient=False), "ignored with strict: false"),
        (json_schema_format({"oneOf": [{"type": "integer"}, {"type": "number"}]}, is_lenient=False), "send anyOf"),
    ],
)
def test_front_finds_out_what_is_wrong_in_words_to_act_on(answer_format: AnswerFormat, reason: str):
    assert reason in problem_of(answer_format)


def test_lenient_schema_does_without_the_patterns_that_no_automaton_can_follow():
    ahead = {"type": "string", "pattern": "^(?=.*x)[a-z]+$", "minLength": 2, "maxLength": 3}
    schema = {
        "properties": {"default": ahead, "pattern": {"const": {"pattern": "(?=a)"}}},
        "additionalProperties": False,
    }
    schema |= {"type": "object", "required": ["default", "pattern"]}
    heard = generated(request(json_schema_format(schema, is_lenient=True), 1))
    assert heard.done.finish_reason == "stop"
    answer = json.loads(heard.text)
    assert 2 <= len(answer["default"]) <= 3
    assert answer["pattern"] == {"pattern": "(?=a)"}
    assert "look-around" in problem_of(json_schema_format(schema, is_lenient=False))


def test_lenient_schema_ignores_what_cannot_be_enforced():
    schema = {"type": "integer", "minimum": 5, "maximum": 9, "not": {"const": 7}}
    assert 5 <= int(generated(request(json_schema_format(schema, is_lenient=True), 1)).text) <= 9
