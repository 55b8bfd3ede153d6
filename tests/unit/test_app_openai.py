"""Chat and text completions over HTTP, against fakes of the store."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import ApiSettings
from tasks.errors import DeadlineCannotBeMet, QueueFull, StoreUnavailable
from tasks.generation import AnswerFormat, TokenLogprob
from tasks.grammars import json_schema_format
from tasks.jobs import JobError, JobState, Priority, Usage
from tasks.stream_events import End, Loading, Queued, Reset, Started, Tokens
from tests.support.front_fakes import DEMO, FakeBackend, RawRequest, chat, front_client, numbered, sse_data, succeeded

USAGE = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
USAGE_OBJECT = {
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "total_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 3},
}
HELLO = (Tokens("Hel", (1,)), Tokens("lo", (2,)))


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend(batches=numbered(*HELLO, succeeded(usage=USAGE)))


@pytest.fixture
def client(fake: FakeBackend) -> Iterator[TestClient]:
    with front_client(fake) as client:
        yield client


def failed(code: str, message: str, param: str | None = None) -> End:
    return End(state=JobState.FAILED, error=JobError(code=code, message=message, param=param))


# ---- shapes


def test_chat_answer_has_openai_shape(client, fake):
    reply = client.post("/v1/chat/completions", json=chat())
    job_id = next(iter(fake.jobs))
    assert reply.json() == {
        "id": "chatcmpl-" + job_id.removeprefix("job_"),
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE_OBJECT,
    }
    assert reply.headers["x-keepwarm-job"] == job_id


def test_chat_stream_opens_with_the_role_and_closes_with_reason_usage_and_done(client):
    reply = client.post("/v1/chat/completions", json=chat(stream=True, stream_options={"include_usage": True}))
    *chunks, done = sse_data(reply.text)
    assert done == "[DONE]"
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert [chunk["usage"] for chunk in chunks] == [None] * 4 + [USAGE_OBJECT]
    assert chunks[-1]["choices"] == []


def test_stream_without_include_usage_has_no_usage_member(client):
    *chunks, _ = sse_data(client.post("/v1/chat/completions", json=chat(stream=True)).text)
    assert not any("usage" in chunk for chunk in chunks)


def test_text_completion_whole_and_streamed(client):
    whole = client.post("/v1/completions", json={"model": "demo", "prompt": ["Say"]}).json()
    assert whole["object"] == "text_completion"
    assert whole["id"].startswith("cmpl-")
    assert whole["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]
    stream = client.post("/v1/completions", json={"model": "demo", "prompt": "Say", "stream": True})
    *chunks, done = sse_data(stream.text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_empty_answer_still_has_role_and_reason(client, fake):
    fake.batches = numbered(succeeded(finish_reason="length"))
    *chunks, _ = sse_data(client.post("/v1/chat/completions", json=chat(stream=True)).text)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}, {}]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_chat_logprobs_have_openai_shape(client, fake):
    token = TokenLogprob("é", -0.5, (TokenLogprob("é", -0.5), TokenLogprob("e", float("-inf"))))
    fake.batches = numbered(Tokens("é", (1,), (token,)), succeeded())
    entry = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    expected = {
        "content": [entry | {"top_logprobs": [entry, {"token": "e", "logprob": -9999.0, "bytes": [101]}]}],
        "refusal": None,
    }
    asked = chat(logprobs=True, top_logprobs=2)
    assert client.post("/v1/chat/completions", json=asked).json()["choices"][0]["logprobs"] == expected
    stream = sse_data(client.post("/v1/chat/completions", json=asked | {"stream": True}).text)
    assert stream[1]["choices"][0]["logprobs"] == expected
    assert fake.submitted[0].request.logprobs == 2


def test_text_logprobs_count_offsets_across_chunks(client, fake):
    tokens = [TokenLogprob("ab", -1.0, (TokenLogprob("ab", -1.0),)), TokenLogprob("c", -2.0)]
    fake.batches = numbered(Tokens("ab", (1,), (tokens[0],)), Tokens("c", (2,), (tokens[1],)), succeeded())
    body = {"model": "demo", "prompt": "x", "logprobs": 1}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert whole == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"ab": -1.0}, None],
        "text_offset": [0, 2],
    }
    chunks = sse_data(client.post("/v1/completions", json=body | {"stream": True}).text)
    assert chunks[1]["choices"][0]["logprobs"]["text_offset"] == [2]


def test_logprobs_of_parts_of_a_character_have_their_bytes_and_its_place(client, fake):
    halves = [TokenLogprob("\ufffd", -1.0, (), b"\xc3"), TokenLogprob("\ufffd", -2.0, (), b"\xa9")]
    next_one = TokenLogprob("x", -3.0)
    fake.batches = numbered(Tokens("é", (1, 2), tuple(halves)), Tokens("x", (3,), (next_one,)), succeeded())
    content = client.post("/v1/chat/completions", json=chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], [0x78]]
    body = {"model": "demo", "prompt": "x", "logprobs": 0}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert (whole["tokens"], whole["text_offset"]) == (["bytes:\\xc3", "bytes:\\xa9", "x"], [0, 0, 1])
    *chunks, _, _ = sse_data(client.post("/v1/completions", json=body | {"stream": True}).text)
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0, 0], [1]]


async def test_events_of_one_batch_travel_in_one_body_chunk(fake):
    fake.batches = [[(1, HELLO[0]), (2, HELLO[1]), (3, succeeded())]]
    request = RawRequest(create_app(ApiSettings(), fake.backend()), "POST", "/v1/chat/completions", chat(stream=True))
    await request.done
    whole, terminator = request.chunks
    assert whole.count(b"data: ") == 5
    assert terminator == b""


# ---- what reaches the engine


def test_sampling_fields_reach_the_job(client, fake):
    fields = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"5": -100},
        "seed": 42,
        "stop": "\n",
        "max_completion_tokens": 9,
        "max_tokens": 3,
        "ignore_eos": True,
        "user": "ignored",
    }
    assert client.post("/v1/chat/completions", json=chat(**fields)).status_code == 200
    request = fake.submitted[0].request
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 0, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.logit_bias, sampling.seed) == ({"5": -100}, 42)
    assert (request.stop, request.max_tokens, request.ignore_eos) == (("\n",), 9, True)


def test_minus_one_means_what_it_means_elsewhere(client, fake):
    fields = {"max_tokens": -1, "max_completion_tokens": -1, "seed": -1, "repeat_last_n": -1, "top_k": -1}
    for _ in range(2):
        assert client.post("/v1/chat/completions", json=chat(**fields)).status_code == 200
    first, second = (submitted.request for submitted in fake.submitted)
    assert first.max_tokens is None
    assert (first.sampling.repeat_last_n, first.sampling.top_k) == (-1, 0)
    assert first.sampling.seed != second.sampling.seed
    for wrong in ({"max_tokens": -2}, {"seed": 1.5}, {"repeat_last_n": -2}):
        assert client.post("/v1/chat/completions", json=chat(**wrong)).status_code == 400


def test_seed_is_drawn_when_the_client_gives_none(client, fake):
    for _ in range(2):
        client.post("/v1/chat/completions", json=chat())
    first, second = (submitted.request.sampling.seed for submitted in fake.submitted)
    assert first != second


def test_content_parts_are_joined_and_null_content_is_empty(client, fake):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
    ]
    client.post("/v1/chat/completions", json=chat(messages=messages))
    assert [message.content for message in fake.submitted[0].request.messages] == ["ab", ""]


def test_alias_is_resolved_and_the_answer_names_the_model(client, fake):
    assert client.post("/v1/chat/completions", json=chat(model="GPT-Demo")).json()["model"] == "demo"
    assert fake.submitted[0].request.model == "demo"


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({}, Priority.INTERACTIVE),
        ({"service_tier": "auto"}, Priority.INTERACTIVE),
        ({"service_tier": None}, Priority.INTERACTIVE),
        ({"service_tier": "flex"}, Priority.BATCH),
        ({"service_tier": "default"}, Priority.DEFAULT),
        ({"service_tier": "priority"}, Priority.INTERACTIVE),
        ({"service_tier": "scale"}, Priority.INTERACTIVE),
        ({"priority": "default", "service_tier": "flex"}, Priority.DEFAULT),
    ],
)
def test_priority_of_a_synchronous_request(client, fake, fields, level):
    client.post("/v1/chat/completions", json=chat(**fields))
    assert fake.submitted[0].priority is level


@pytest.mark.parametrize(("path", "prompt"), [("/v1/chat/completions", {}), ("/v1/completions", {"prompt": "x"})])
@pytest.mark.parametrize(
    ("fields", "tier"),
    [
        ({"service_tier": "flex"}, "flex"),
        ({"service_tier": "default"}, "default"),
        ({"service_tier": "auto"}, "priority"),
        ({"service_tier": "flex", "priority": "interactive"}, "priority"),
    ],
)
def test_answer_says_the_tier_that_its_job_had(client, fake, path, prompt, fields, tier):
    fake.batches = numbered(Tokens("a", (1,)), succeeded())
    assert client.post(path, json=chat(**fields, **prompt)).json()["service_tier"] == tier
    chunks = sse_data(client.post(path, json=chat(stream=True, **fields, **prompt)).text)[:-1]
    assert {chunk["service_tier"] for chunk in chunks} == {tier}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("path", "prompt"), [("/v1/chat/completions", {}), ("/v1/completions", {"prompt": "x"})])
def test_metadata_are_those_of_every_job_of_the_request(client, fake, path, prompt, n):
    fake.batches = numbered(Tokens("a", (1,)), succeeded())
    body = chat(metadata={"team": "red"}, store=True, n=n, **prompt)
    assert client.post(path, json=body).status_code == 200
    assert [job.metadata for job in fake.jobs.values()] == [{"team": "red"}] * n


def test_answer_is_silent_about_tiers_when_none_was_asked_for(client, fake):
    fake.batches = numbered(Tokens("a", (1,)), succeeded())
    assert "service_tier" not in client.post("/v1/chat/completions", json=chat()).text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_unknown_tier_is_refused_by_name(client, path):
    reply = client.post(path, json=chat(service_tier="gold", prompt="x"))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "service_tier")


def test_model_whose_workers_are_away_is_admitted(client, fake):
    fake.workers, fake.away = (), (DEMO,)
    assert client.post("/v1/chat/completions", json=chat()).status_code == 200


@pytest.mark.parametrize(("path", "prompt"), [("/v1/chat/completions", {}), ("/v1/completions", {"prompt": "x"})])
def test_answer_format_reaches_the_job(client, fake, path, prompt):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    assert client.post(path, json=chat(response_format=wanted, **prompt)).status_code == 200
    assert client.post(path, json=chat(grammar='root ::= "yes" | "no"', **prompt)).status_code == 200
    formats = [submitted.request.answer_format for submitted in fake.submitted]
    assert formats == [
        json_schema_format(schema, is_lenient=False),
        AnswerFormat(kind="gbnf", text='root ::= "yes" | "no"'),
    ]


def test_body_nested_beyond_reason_is_a_bad_request(client, fake):
    for nested in ("[" * 100_000 + "]" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000):
        content = b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "response_format": %b}'
        reply = client.post("/v1/chat/completions", content=content % nested.encode())
        assert reply.status_code == 400, reply.text
    assert not fake.submitted


# ---- refusals before admission


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"n": 17}, "n", "at most 16"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "x"}}}},
            "response_format",
            "#",
        ),
        ({"grammar": "root"}, "grammar", "expected ::="),
        ({"grammar": "root ::= " + "(" * 20_000}, "grammar", "at most 64 parentheses"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"stop": list("abcdefghi")}, "stop", "at most 8"),
        ({"stop": [""]}, "stop", "1 to 256"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "system"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content[0].text", "surrogate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "image_url"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id", "required"),
        ({"model": None}, "model", "string"),
    ],
)
def test_bad_field_is_named(client, fake, fields, param, word):
    reply = client.post(
        "/v1/chat/completions", content=json.dumps(chat(**fields)), headers={"content-type": "application/json"}
    )
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param or error["param"].startswith(param + ".")
    assert word in error["message"]
    assert not fake.submitted
    assert "x-should-retry" not in reply.headers


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2]},
        {"prompt": 7},
        {"prompt": "a", "echo": True},
        {"prompt": "a", "n": 2, "best_of": 3},
    ],
)
def test_bad_completion_is_refused(client, fields):
    reply = client.post("/v1/completions", json={"model": "demo"} | fields)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] in {"prompt", "echo", "best_of"}


def test_unknown_model_is_404_with_the_nearest_names(client):
    reply = client.post("/v1/chat/completions", json=chat(model="demon"))
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"
    assert "Did you mean demo or gpt-demo?" in reply.json()["error"]["message"]


def test_unknown_model_like_no_other_is_404_with_some_that_exist(client):
    message = client.post("/v1/chat/completions", json=chat(model="xyz")).json()["error"]["message"]
    assert message == "The model 'xyz' does not exist. GET /v1/models lists what does, such as cold, demo, gpt-demo."


def test_full_queue_is_429_with_retry_after(client, fake):
    fake.error = QueueFull(scope="'demo'", depth=5, limit=5, retry_after_s=7)
    reply = client.post("/v1/chat/completions", json=chat())
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert reply.json()["error"]["type"] == "rate_limit_error"
    assert reply.headers["x-should-retry"] == "true"


def test_deadline_that_cannot_be_met_is_400_in_openais_shape_and_422_as_a_problem(client, fake):
    fake.error = DeadlineCannotBeMet(ahead=7, predicted_wait_s=12.34, deadline_in_s=5)
    reply = client.post("/v1/chat/completions", json=chat())
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "deadline_cannot_be_met")
    assert reply.json()["error"]["type"] == "invalid_request_error"
    problem = client.post("/v1/jobs", json={"model": "demo", "prompt": "x"})
    assert problem.status_code == problem.json()["status"] == 422
    assert {"ahead": 7, "predicted_wait_s": 12.3, "deadline_in_s": 5}.items() <= problem.json().items()


def test_store_that_is_down_is_503_with_retry_after(client, fake):
    fake.error = StoreUnavailable("gone")
    reply = client.post("/v1/chat/completions", json=chat())
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


# ---- errors after admission


@pytest.mark.parametrize("stream", [False, True])
def test_error_that_comes_fast_has_its_own_status(client, fake, stream):
    fake.batches = numbered(failed("context_length_exceeded", "300 tokens, holds 256", "messages"))
    reply = client.post("/v1/chat/completions", json=chat(stream=stream))
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "message": "300 tokens, holds 256",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-keepwarm-job"] in fake.jobs


def test_too_long_prompt_of_a_text_completion_names_the_prompt(client, fake):
    fake.batches = numbered(failed("context_length_exceeded", "too long", "messages"))
    assert client.post("/v1/completions", json={"model": "demo", "prompt": "x"}).json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (failed("model_load_failed", "bad file"), 503),
        (failed("model_does_not_fit", "too big"), 503),
        (failed("runner_crashed", "dead"), 500),
        (failed("never_heard_of", "?"), 500),
        (End(state=JobState.CANCELLED), 409),
        (End(state=JobState.EXPIRED), 504),
    ],
)
def test_status_of_a_job_that_failed(client, fake, end, status):
    fake.batches = numbered(end)
    reply = client.post("/v1/chat/completions", json=chat(stream=True))
    assert reply.status_code == status
    assert reply.headers["x-should-retry"] == "false"


def test_late_error_goes_in_band_without_done(client, fake):
    fake.batches = numbered(HELLO[0], failed("runner_crashed", "dead"))
    reply = client.post("/v1/chat/completions", json=chat(stream=True))
    assert reply.status_code == 200
    assert sse_data(reply.text)[-1] == {
        "error": {"message": "dead", "type": "server_error", "param": None, "code": "runner_crashed"}
    }


def test_reset_after_text_breaks_a_stream_and_cancels_the_job(client, fake):
    fake.batches = numbered(HELLO[0], Reset(2, "other engine"), HELLO[1], succeeded())
    reply = client.post("/v1/chat/completions", json=chat(stream=True))
    assert sse_data(reply.text)[-1]["error"]["code"] == "stream_reset"
    assert fake.cancelled == list(fake.jobs)


def test_reset_breaks_a_stream_under_a_key_but_not_its_job(client, fake):
    fake.batches = numbered(HELLO[0], Reset(2, "other engine"), HELLO[1], succeeded())
    reply = client.post("/v1/chat/completions", json=chat(stream=True), headers={"Idempotency-Key": "k"})
    assert sse_data(reply.text)[-1]["error"]["code"] == "stream_reset"
    assert fake.cancelled == []


def test_reset_before_any_text_goes_unnoticed(client, fake):
    fake.batches = numbered(Reset(2, "other engine"), *HELLO, succeeded())
    assert "error" not in client.post("/v1/chat/completions", json=chat(stream=True)).text


def test_reset_starts_a_whole_answer_over(client, fake):
    fake.batches = numbered(Tokens("void", (9,)), Reset(2, "other engine"), *HELLO, succeeded())
    assert client.post("/v1/chat/completions", json=chat()).json()["choices"][0]["message"]["content"] == "Hello"


def test_stream_that_ends_without_an_end_is_an_error(client, fake):
    fake.batches = numbered(*HELLO)
    assert client.post("/v1/chat/completions", json=chat()).status_code == 500
    assert "error" in sse_data(client.post("/v1/chat/completions", json=chat(stream=True)).text)[-1]


def test_answer_that_takes_too_long_is_cancelled(fake):
    fake.batches, fake.stays_open = [], True
    with TestClient(
        create_app(ApiSettings(sync_timeout_s=0.01), fake.backend()), base_url="http://127.0.0.1"
    ) as client:
        reply = client.post("/v1/chat/completions", json=chat())
    assert reply.status_code == 504
    assert fake.cancelled == list(fake.jobs)


def test_answer_under_a_key_that_takes_too_long_goes_on(fake):
    fake.batches, fake.stays_open = [], True
    with front_client(fake, sync_timeout_s=0.01) as client:
        reply = client.post("/v1/chat/completions", json=chat(), headers={"Idempotency-Key": "k"})
    assert (reply.status_code, fake.cancelled) == (504, [])
    assert "same Idempotency-Key" in reply.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
def test_stream_that_the_store_fails_ends_in_band_and_with_it_a_job_that_nobody_can_ask_for(client, fake, headers):
    fake.batches, fake.breaks = numbered(HELLO[0]), StoreUnavailable("away")
    reply = client.post("/v1/chat/completions", json=chat(stream=True), headers=headers)
    assert sse_data(reply.text)[-1]["error"]["code"] == "store_unavailable"
    assert fake.cancelled == ([] if headers else list(fake.jobs))


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
def test_waiting_request_that_the_store_fails_ends_a_job_that_nobody_can_ask_for(client, fake, headers):
    fake.batches, fake.breaks = numbered(HELLO[0]), StoreUnavailable("away")
    reply = client.post("/v1/chat/completions", json=chat(), headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    assert fake.cancelled == ([] if headers else list(fake.jobs))


async def test_job_of_a_client_that_leaves_while_the_store_is_away_is_cancelled_later(fake, monkeypatch):
    monkeypatch.setattr("app.departures.RETRY_S", 0.0)
    fake.batches, fake.stays_open = numbered(HELLO[0]), True
    calls, is_cancelled, loop = [], asyncio.Event(), asyncio.get_running_loop()

    def cancel(job_id):
        calls.append(job_id)
        if len(calls) < 4:
            raise StoreUnavailable("away")
        loop.call_soon_threadsafe(is_cancelled.set)

    fake.cancel = cancel
    request = RawRequest(create_app(ApiSettings(), fake.backend()), "POST", "/v1/chat/completions", chat(stream=True))
    await request.has_body.wait()
    request.leave()
    await request.done
    async with asyncio.timeout(5):
        await is_cancelled.wait()
    assert set(calls) == set(fake.jobs)


# ---- while a job waits


async def test_store_that_hangs_keeps_no_stream_from_its_keep_alives(fake, monkeypatch):
    monkeypatch.setattr("app.following.POSITION_TIMEOUT_S", 0.01)
    fake.batches, fake.stays_open = [], True
    answers = threading.Event()
    fake.position = lambda job: answers.wait(10)
    app = create_app(ApiSettings(hold_back_s=0, keep_alive_s=1), fake.backend())
    request = RawRequest(app, "POST", "/v1/chat/completions", chat(stream=True))
    async with asyncio.timeout(5):
        await request.has_body.wait()
    assert request.body.startswith(b": keep-alive")
    answers.set()
    request.leave()
    await request.done


def test_waiting_is_told_in_comments(fake):
    loading = [(None, Loading("demo", 0.4))]
    fake.batches = [[], [(None, Queued(2))], loading, [(None, Started(1, "w1"))], *numbered(*HELLO, succeeded())]
    with front_client(fake, hold_back_s=0) as client:
        fake.line_position = 3
        text = client.post("/v1/chat/completions", json=chat(stream=True)).text
    assert [line for line in text.split("\n") if line.startswith(":")] == [
        ": queued position=3",
        ": queued position=2",
        ": loading demo 40%",
    ]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in sse_data(text)[:-1]) == "Hello"


async def test_client_that_leaves_a_stream_cancels_its_job(fake):
    fake.batches, fake.stays_open = numbered(HELLO[0]), True
    request = RawRequest(create_app(ApiSettings(), fake.backend()), "POST", "/v1/chat/completions", chat(stream=True))
    await request.has_body.wait()
    request.leave()
    await request.done
    assert fake.cancelled == list(fake.jobs)
    assert fake.num_followers == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_before_the_first_token_cancels_its_job(fake, stream):
    fake.batches, fake.stays_open = [], True
    request = RawRequest(create_app(ApiSettings(), fake.backend()), "POST", "/v1/chat/completions", chat(stream=stream))
    request.leave()
    await request.done
    assert fake.cancelled == list(fake.jobs)
    assert fake.num_followers == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_complete_answer_cancels_nothing(fake, stream):
    request = RawRequest(create_app(ApiSettings(), fake.backend()), "POST", "/v1/chat/completions", chat(stream=stream))
    await request.done
    request.leave()
    assert request.status == 200
    assert not fake.cancelled
    assert fake.num_followers == 0
