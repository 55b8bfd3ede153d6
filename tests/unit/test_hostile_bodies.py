"""Bodies that are meant to break or to stall a front: each is refused in words, and nothing reaches a queue."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from app.json_body import MAX_CONTAINERS, num_containers, parse
from tests.support.front_fakes import FakeBackend, front_client

CHAT, JOBS, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/jobs", "/v1/embeddings", "/v1/responses"
RERANK, BATCHES = "/v1/rerank", "/v1/batches"
HELLO = '{"role":"user","content":"x"}'
MANY = 100_000
DEEP = 15_000


@pytest.fixture(scope="module")
def fake() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def client(fake: FakeBackend) -> Iterator[TestClient]:
    with front_client(fake) as client:
        yield client


def chat(fields: str = "", messages: str = f"[{HELLO}]") -> str:
    return f'{{"model":"demo","messages":{messages}{fields}}}'


def times(item: str) -> str:
    return "[" + ",".join([item] * MANY) + "]"


def members(value: str) -> str:
    return "{" + ",".join(f'"{index}":{value}' for index in range(MANY)) + "}"


def schema(text: str) -> str:
    return chat(f',"response_format":{{"type":"json_schema","json_schema":{{"name":"a","schema":{text}}}}}')


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        (CHAT, chat(',"temperature":1e999'), "temperature"),
        (CHAT, chat(',"top_p":NaN'), "top_p"),
        (CHAT, chat(',"max_tokens":1e999'), "max_tokens"),
        (CHAT, chat(',"logit_bias":{"1":-Infinity}'), "logit_bias"),
        (CHAT, chat(',"seed":' + "9" * 5000), "too many digits"),
        (CHAT, chat(',"seed":' + "9" * 50), "seed"),
        (CHAT, schema('{"type":"number","minimum":1e999}'), "no JSON"),
        (CHAT, schema('{"enum":[NaN]}'), "no JSON"),
        (CHAT, chat(',"unknown":' + "[" * DEEP + "]" * DEEP), "nested too deeply"),
        (CHAT, chat(messages=times(HELLO)), "JSON objects"),
        (CHAT, chat(messages=times("1")), "messages[0]"),
        (CHAT, chat(messages=f'[{{"role":"user","content":{times("1")}}}]'), "messages[0].content[0]"),
        (CHAT, chat(',"unknown":' + times("[]")), "JSON objects and lists"),
        (CHAT, chat(',"stop":' + times('"x"')), "stop"),
        (CHAT, chat(',"tools":' + times("{}")), "JSON objects"),
        (CHAT, chat(messages='[{"role":"user","content":"\\ud800"}]'), "Unicode"),
        (RESPONSES, f'{{"model":"demo","input":{times("1")}}}', "input[0]"),
        (RESPONSES, f'{{"model":"demo","input":{times(HELLO)}}}', "JSON objects"),
        (EMBEDDINGS, '{"model":"demo","input":[1e999]}', "input[0]"),
        (EMBEDDINGS, '{"model":"demo","input":"x","dimensions":1e999}', "dimensions"),
        (CHAT, chat(',"logit_bias":' + members('"x"')), "logit_bias.0"),
        (CHAT, chat(',"metadata":' + members("1")), "metadata.0"),
        (
            BATCHES,
            f'{{"input_file_id":"f","endpoint":"x","completion_window":"24h","metadata":{members("1")}}}',
            "metadata.0",
        ),
        (RESPONSES, f'{{"model":"demo","input":"x","include":{times("1")}}}', "include"),
        (
            RESPONSES,
            f'{{"model":"demo","input":"x","tool_choice":{{"type":"allowed_tools","tools":{times("1")}}}}}',
            "tool_choice",
        ),
        (EMBEDDINGS, f'{{"model":"demo","input":{times("-1")}}}', "input"),
        (EMBEDDINGS, f'{{"model":"demo","input":{times("null")}}}', "input[0]"),
        (EMBEDDINGS, f'{{"model":"demo","input":[{times("-1")}]}}', "input[0]"),
        (RERANK, f'{{"model":"demo","query":"x","documents":{times("1")}}}', "documents[0]"),
        (JOBS, '{"model":"demo","prompt":"x","deadline":1e999}', "deadline"),
        (JOBS, '{"model":"demo","prompt":"x","deadline":"9999-12-31T23:59:59-23:59"}', "deadline"),
        (JOBS, '{"model":"demo","prompt":"x","deadline":1e-300}', "deadline"),
    ],
)
def test_hostile_body_is_refused_in_words(client: TestClient, fake: FakeBackend, path: str, body: str, word: str):
    reply = client.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    message = reply.json()["error"]["message"] if path != JOBS else reply.json()["detail"]
    assert word in message
    assert len(message) < 300
    assert not fake.submitted


def test_body_that_is_no_utf8_is_refused_by_its_place(client: TestClient):
    reply = client.post(CHAT, content=b'{"model":"\xff"}', headers={"content-type": "application/json"})
    assert (reply.status_code, "byte 10 is 0xff" in reply.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    "string",
    ['"[{"', r'"\"[\\"', r'"\\\"{"', '"[\n{"'],
)
def test_objects_and_lists_are_counted_at_every_depth_and_brackets_in_strings_are_not(string: str):
    filler = f"[{string}," + "[]," * MAX_CONTAINERS
    assert num_containers(filler + f'{{"a":[{{}},[{string}]],"b":{string}}}]') == MAX_CONTAINERS + 5


def test_a_text_full_of_brackets_is_one_string():
    code = "[{" * MAX_CONTAINERS
    assert parse(json.dumps({"a": code}).encode()) == {"a": code}


def test_a_string_without_an_end_hides_what_follows_and_is_no_json():
    body = "[" * MAX_CONTAINERS + '"' + "[" * MANY
    assert num_containers(body) == MAX_CONTAINERS
    with pytest.raises((json.JSONDecodeError, HTTPException)):
        parse(body.encode())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_body_may_begin_with_a_byte_order_mark(encoding: str):
    assert parse('{"a":"ä"}'.encode(encoding)) == {"a": "ä"}


def test_body_in_another_encoding_is_refused():
    with pytest.raises(json.JSONDecodeError):
        parse('{"a":1}'.encode("utf-16-le"))


@pytest.mark.parametrize("query", ["limit=1e999", "limit=" + "9" * 5000, "limit=-1", "after=%00", "model=%ff"])
def test_hostile_query_is_refused(client: TestClient, query: str):
    assert client.get(f"/v1/jobs?{query}").status_code in {200, 400, 404}
