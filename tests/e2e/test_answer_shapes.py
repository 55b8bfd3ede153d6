"""What shapes an answer, through the official SDK on a real model: formats, tools, choices, log probabilities."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.support.stack import Api, Stack

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
HELLO: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Moves the fox.",
            "parameters": {
                "type": "object",
                "properties": {
                    "steps": {"type": "integer", "minimum": 3, "maximum": 12},
                    "way": {"enum": ["north", "südwärts 🦊"]},
                },
                "required": ["steps", "way"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("walk", "run")
]


class Fox(BaseModel):
    kind: Literal["red", "größer 🦊"]
    age: int = Field(ge=2, le=14)
    friends: list[Literal["owl", "bear"]] = Field(max_length=3)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with Stack(tmp_path_factory.mktemp("home")) as stack:
        yield stack.start_all()


@pytest.fixture(scope="module")
def client(api: Api) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 120} | fields)  # type: ignore[call-overload]


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_parsed_answer_is_valid_by_its_schema(client, temperature):
    for seed in range(4):
        answer = client.chat.completions.parse(
            model=MODEL, messages=HELLO, response_format=Fox, seed=seed, temperature=temperature
        )
        assert answer.choices[0].finish_reason == "stop"
        assert 2 <= answer.choices[0].message.parsed.age <= 14


def test_streamed_json_is_the_whole_one(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "fox", "schema": Fox.model_json_schema()}}
    whole = ask(client, response_format=wanted, seed=1, max_tokens=300).choices[0].message.content
    stream = ask(client, response_format=wanted, seed=1, max_tokens=300, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
    Fox.model_validate_json(whole)


def test_grammar_of_a_text_completion(client):
    grammar = 'root ::= ("yes" | "no") " " [ß🦊]{3} "."'
    text = client.completions.create(model=MODEL, prompt="Is it?", extra_body={"grammar": grammar}).choices[0].text
    assert text[:-4] in {"yes ", "no "}
    assert set(text[-4:-1]) <= {"ß", "🦊"} and text[-1] == "."


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "run"}}])
def test_demanded_call_is_made_with_valid_arguments_whole_and_streamed(client, choice):
    for seed in range(3):
        options: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "seed": seed, "temperature": 1.5}
        options |= {"parallel_tool_calls": False, "max_tokens": 300}
        whole = ask(client, **options).choices[0]
        assert whole.finish_reason == "tool_calls"
        (call,) = whole.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert 3 <= arguments["steps"] <= 12
        assert arguments["way"] in {"north", "südwärts 🦊"}
        assert call.function.name == "run" or choice == "required"
        with client.chat.completions.stream(model=MODEL, messages=HELLO, **options) as stream:
            streamed = stream.get_final_completion().choices[0]
        (again,) = streamed.message.tool_calls
        assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)
        assert streamed.finish_reason == "tool_calls"


def test_conversation_goes_on_after_a_call(client):
    called = (
        ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=300, seed=3)
        .choices[0]
        .message
    )
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in called.tool_calls]
    messages = [*HELLO, called.model_dump(exclude_none=True), *results]
    answer = ask(client, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=8)
    assert answer.usage.prompt_tokens > 40
    assert answer.choices[0].message.content


def test_choices_differ_and_the_first_is_what_one_alone_would_be(client):
    options: dict[str, Any] = {"seed": 21, "temperature": 1.2, "max_tokens": 24}
    alone = ask(client, **options).choices[0].message.content
    several = ask(client, n=4, **options)
    texts = [choice.message.content for choice in several.choices]
    assert texts[0] == alone
    assert len(set(texts)) > 1
    streamed = ["", "", "", ""]
    num_tokens = 0
    for chunk in ask(client, n=4, stream=True, stream_options={"include_usage": True}, **options):
        num_tokens += chunk.usage.completion_tokens if chunk.usage else 0
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert num_tokens == several.usage.completion_tokens


def test_chat_logprobs_spell_the_answer_byte_by_byte(client):
    grammar = {"grammar": 'root ::= "Ü 🦊 " [a-z]{4}'}
    whole = ask(client, logprobs=True, top_logprobs=3, extra_body=grammar, seed=1).choices[0]
    entries = whole.logprobs.content
    assert bytes(itertools.chain.from_iterable(entry.bytes for entry in entries)).decode() == whole.message.content
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.logprob <= entry.top_logprobs[0].logprob <= 0 for entry in entries)
    stream = ask(client, logprobs=True, top_logprobs=3, extra_body=grammar, seed=1, stream=True)
    choices = [chunk.choices[0] for chunk in stream]
    streamed = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in entries]


@pytest.mark.parametrize("stream", [False, True])
def test_text_logprobs_know_where_each_token_stands(client, stream):
    options: dict[str, Any] = {"max_tokens": 12, "logprobs": 2, "temperature": 0, "stream": stream}
    options |= {"extra_body": {"grammar": 'root ::= "größe 🦊 so" [a-z ]*'}}
    answer = client.completions.create(model=MODEL, prompt="The fox", **options)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    text = "".join(choice.text for choice in choices)
    found = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for each in found for token in each.tokens]
    offsets = [offset for each in found for offset in each.text_offset]
    assert len(tokens) == len(offsets) == 12
    for token, offset in zip(tokens, offsets, strict=True):
        assert token.startswith("bytes:") or text.startswith(token, offset)


def test_stop_limit_bias_and_ignored_end(client):
    text = ask(client, temperature=0).choices[0].message.content
    stop = text[10:18]  # eight signs in the middle, of several tokens
    cut = ask(client, temperature=0, stop=[stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")
    short = ask(client, temperature=0, max_tokens=5)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 5)
    endless = ask(client, temperature=0, max_tokens=100, extra_body={"ignore_eos": True})
    assert endless.usage.completion_tokens == 100
    biased = ask(client, temperature=1, max_tokens=10, logit_bias={"70": 100}, logprobs=True).choices[0]
    assert len({entry.token for entry in biased.logprobs.content}) == 1


# ---- input that kills llama.cpp or a parser, from outside


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


DEEP = "[" * 50_000 + "]" * 50_000
CHAIN = "\n".join(["root ::= a0", *(f"a{i} ::= a{i + 1}" for i in range(3000)), 'a3000 ::= "x"'])
ASKED = json.dumps({"model": MODEL, "messages": HELLO})[:-1]
HOSTILE: list[tuple[str, dict[str, Any] | str]] = [
    ("parentheses", {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000}),
    ("null grammar", {"grammar": "root ::= undefined"}),
    ("stack of the compiler", {"grammar": CHAIN}),
    ("deep schema", {"response_format": {"type": "json_object", "schema": nested(300)}}),
    ("deep body", ASKED + f', "response_format": {DEEP}}}'),
    ("unknown bias", {"logit_bias": {"999999999": 1}}),
    ("too long", {"messages": [{"role": "user", "content": "fox " * 20_000}]}),
    ("surrogate", ASKED + ', "stop": "\\ud800"}'),
    ("infinite", ASKED + ', "temperature": 1e999}'),
    ("endless rule", {"grammar": 'root ::= root "a"'}),
    ("repetitions", {"grammar": 'root ::= "a"{1000000000}'}),
    ("image", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}),
]


def test_hostile_input_is_a_bad_request_and_the_runner_lives_on(api, client):
    ask(client, max_tokens=2)
    (before,) = api.runners(MODEL)
    for name, fields in HOSTILE:
        body = fields if isinstance(fields, str) else json.dumps({"model": MODEL, "messages": HELLO} | fields)
        reply = api.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400, (name, reply.text[:300])
        assert reply.json()["error"]["type"] == "invalid_request_error", name
    assert ask(client, max_tokens=2).choices[0].finish_reason == "length"
    (after,) = api.runners(MODEL)
    assert after["pid"] == before["pid"]


def test_prompt_longer_than_a_batch_with_more_choices_than_slots_is_answered_by_the_same_runner(api, client):
    ask(client, max_tokens=2)
    (before,) = api.runners(MODEL)
    long = [{"role": "user", "content": "A long story about many animals and their friends in the wood. " * 150}]
    answer = ask(client, messages=long, n=16, logprobs=True, top_logprobs=20, max_tokens=3, temperature=1)
    assert answer.usage.prompt_tokens > 1500  # a batch holds some 520
    assert len({choice.index for choice in answer.choices}) == 16 > before["slots"]
    assert all(len(entry.top_logprobs) == 20 for choice in answer.choices for entry in choice.logprobs.content)
    assert [runner["pid"] for runner in api.runners(MODEL)] == [before["pid"]]
