"""Bodies that are meant to break or to stall a front: each is refused in words, and nothing reaches a queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from app.json_body import MAX_OBJECTS, num_objects
from tests.support.front_fakes import FakeBackend, front_client

CHAT, JOBS, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/jobs", "/v1/embeddings", "/v1/responses"
RERANK, BATCHES = "/v1/rerank", "/v1/batches"
HELLO = '{"role":"user","content":"x"}'
MANY = 100_000


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
        (CHAT, chat(',"unknown":' + "[" * MANY + "]" * MANY), "nested too deeply"),
        (CHAT, chat(messages=times(HELLO)), "JSON objects"),
        (CHAT, chat(messages=times("1")), "messages[0]"),
        (CHAT, chat(messages=f'[{{"role":"user","content":{times("1")}}}]'), "messages[0].content[0]"),
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


def test_objects_are_counted_at_every_depth():
    assert num_objects({"a": [{}, [{"b": {}}], 1, "{"], "c": None}) == 4
    assert num_objects([{}] * (MAX_OBJECTS + 1)) == MAX_OBJECTS + 1


@pytest.mark.parametrize("query", ["limit=1e999", "limit=" + "9" * 5000, "limit=-1", "after=%00", "model=%ff"])
def test_hostile_query_is_refused(client: TestClient, query: str):
    assert client.get(f"/v1/jobs?{query}").status_code in {200, 400, 404}
