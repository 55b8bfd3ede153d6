"""Tools over HTTP, against fakes of the store."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tasks.generation import TokenLogprob, ToolCall
from tasks.stream_events import Tokens
from tests.support.front_fakes import FakeBackend, chat, front_client, numbered, sse_data, succeeded

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": PARAMETERS}}
PING = {"type": "function", "function": {"name": "ping"}}
NAMED = {"type": "function", "function": {"name": "ping"}}
TEXT = 'Well.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
PIECES = [TEXT[:9], TEXT[9:57], TEXT[57:62], TEXT[62:-3], TEXT[-3:]]


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend(batches=numbered(*(Tokens(piece, (1,)) for piece in PIECES), succeeded()))


@pytest.fixture
def client(fake: FakeBackend) -> Iterator[TestClient]:
    with front_client(fake) as client:
        yield client


def ask(client: TestClient, **fields):
    return client.post("/v1/chat/completions", json=chat(**{"tools": [WEATHER, PING]} | fields))


def test_whole_answer_with_a_call(client):
    choice = ask(client).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well."
    (call,) = choice["message"]["tool_calls"]
    assert call | {"id": ""} == {
        "id": "",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
    }
    assert len(call["id"]) == 9 and call["id"].isalnum()


def test_streamed_call_has_its_id_and_name_first_and_then_its_arguments(client):
    *chunks, done = sse_data(ask(client, stream=True).text)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[:2] == [{"role": "assistant", "content": ""}, {"content": "Well."}]
    first, *rest = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert (first["index"], first["type"]) == (0, "function")
    assert first["function"] == {"name": "weather", "arguments": ""}
    assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in rest)
    assert "".join(call["function"]["arguments"] for call in rest) == '{"city": "Zürich"}'
    assert len(rest) > 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_answer_that_is_cut_off_says_so(client, fake):
    fake.batches = numbered(Tokens(TEXT[:60], (1,)), succeeded(finish_reason="length"))
    assert ask(client).json()["choices"][0]["finish_reason"] == "length"


def test_answer_without_a_call_is_an_ordinary_one(client, fake):
    fake.batches = numbered(Tokens("Hello ", (1,)), Tokens("you ", (2,)), succeeded())
    message = ask(client).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hello you ", "refusal": None}
    deltas = [chunk["choices"][0]["delta"] for chunk in sse_data(ask(client, stream=True).text)[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello you "


def test_logprobs_of_text_that_is_held_back_come_with_the_next_delta(client, fake):
    tokens = [Tokens(piece, (1,), (TokenLogprob(piece, -1.0),)) for piece in PIECES]
    fake.batches = numbered(*tokens, succeeded())
    chunks = sse_data(ask(client, stream=True, logprobs=True).text)[:-1]
    entries = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry["token"] for each in entries if each for entry in each["content"]] == PIECES


@pytest.mark.parametrize(
    ("choice", "must_call", "only"),
    [(None, False, None), ("auto", False, None), ("required", True, None), (NAMED, True, "ping")],
)
def test_tools_and_their_choice_reach_the_job(client, fake, choice, must_call, only):
    assert ask(client, tool_choice=choice, parallel_tool_calls=False).status_code == 200
    request = fake.submitted[0].request
    assert [tool.name for tool in request.tools] == ["weather", "ping"]
    assert json.loads(request.tools[0].definition) == WEATHER["function"]
    assert (request.must_call_tool, request.only_tool, request.parallel_tool_calls) == (must_call, only, False)


def test_tool_choice_none_hides_the_tools(client, fake):
    assert "tool_calls" not in ask(client, tool_choice="none").json()["choices"][0]["message"]
    assert fake.submitted[0].request.tools == ()


def test_calls_and_results_of_a_conversation_reach_the_job(client, fake):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "yes"}]},
    ]
    assert ask(client, messages=messages).status_code == 200
    _, called, result = fake.submitted[0].request.messages
    assert called.tool_calls == (ToolCall("c1", "weather", '{"city": "Ulm"}'),)
    assert (result.role, result.content, result.tool_call_id) == ("tool", "yes", "c1")


def with_parameters(parameters: object, **fields) -> dict:
    return {"type": "function", "function": {"name": "f", "parameters": parameters} | fields}


LONG = {"properties": {"a": {"enum": ["x" * 32_000]}}}  # within the bounds of one schema


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools", "same name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
        (
            {"tools": [{"type": "function", "function": {"name": f"t{n}", "parameters": LONG}} for n in range(9)]},
            "tools",
            "bytes together; at most 262144",
        ),
        ({"tools": [PING] * 129}, "tools", "at most 128, not 129"),
        ({"tools": [with_parameters({"type": "string"})]}, "tools[0].function.parameters", "object"),
        ({"tools": [with_parameters({"$ref": "http://x"})]}, "tools[0].function.parameters", "references"),
        ({"tools": [with_parameters({"properties": {"a": {"type": "no"}}})]}, "tools[0].function.parameters", "no"),
        ({"tools": [with_parameters({"not": {}}, strict=True)]}, "tools[0].function.parameters", "not"),
        ({"tool_choice": "sometimes"}, "tool_choice", "required"),
        ({"tool_choice": {"type": "function", "function": {"name": "pong"}}}, "tool_choice", "no tool 'pong'"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "no tools"),
        ({"grammar": 'root ::= "a"'}, "grammar", "combined"),
        ({"functions": [{"name": "f"}]}, "functions", "tools"),
    ],
)
def test_bad_tools_are_refused(client, fake, fields, param, word):
    reply = ask(client, **fields)
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert error["param"] == param or error["param"].startswith(param + ".")
    assert word in error["message"]
    assert not fake.submitted


@pytest.mark.parametrize("arguments", ["[1]", "{", "null", "[" * 100_000])
def test_arguments_of_an_earlier_call_must_be_an_object(client, arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    reply = ask(client, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "messages[0].tool_calls[0].function.arguments"


def test_unstrict_tool_may_have_keywords_that_nobody_enforces(client, fake):
    assert ask(client, tools=[with_parameters({"not": {}, "properties": {"u": {"format": "odd"}}})]).status_code == 200


def test_tools_need_messages(client):
    reply = client.post("/v1/jobs", json={"model": "demo", "prompt": "x", "tools": [PING]})
    assert (reply.status_code, reply.json()["param"]) == (400, "tools")
