"""The official OpenAI SDK, unchanged, against a real server on a real store, with a scripted worker behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from app.backend import connect_backend
from app.main import create_app
from app.settings import ApiSettings
from tasks.fleet import ModelOffer
from tasks.generation import TokenLogprob
from tasks.settings import StoreSettings
from tasks.stream_events import Reset
from tests.support.front_server import FrontServer
from tests.support.scripted_worker import DEMO_OFFER, ScriptedWorker

pytestmark = pytest.mark.integration

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server(store_settings: StoreSettings, worker: ScriptedWorker) -> Iterator[FrontServer]:
    with FrontServer(create_app(ApiSettings(), connect_backend(store_settings))) as server:
        yield server


@pytest.fixture
def sdk(server: FrontServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key="none") as sdk:
        yield sdk


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future]]:
    """Run the client's side in a thread while the test plays the worker."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def num_jobs(sdk: OpenAI) -> int:
    return len(sdk.get("/jobs", cast_to=object)["data"])  # type: ignore[index]


def test_stream(sdk, worker, meanwhile):
    def read() -> list:
        options: Any = {"include_usage": True}
        return list(sdk.chat.completions.create(model="gpt-demo", messages=HELLO, stream=True, stream_options=options))

    chunks = meanwhile(read)
    turn = worker.take()
    turn.answer("Hel", "lo", "!")
    *parts, last = chunks.result()
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "Hello!"
    assert (parts[0].choices[0].delta.role, parts[0].choices[0].delta.content) == ("assistant", "")
    assert parts[-1].choices[0].finish_reason == "stop"
    assert {(part.id, part.created, part.model) for part in (*parts, last)} == {(last.id, last.created, "demo")}
    assert last.usage.completion_tokens == 3
    assert last.usage.prompt_tokens_details.cached_tokens == 3
    assert turn.attempt.request.messages[0].content == "Hello"


def test_whole_answer(sdk, worker, meanwhile):
    raw = meanwhile(sdk.chat.completions.with_raw_response.create, model="demo", messages=HELLO, seed=1)
    turn = worker.take()
    turn.answer("Hel", "lo")
    answer = raw.result().parse()
    assert answer.choices[0].message.content == "Hello"
    assert answer.usage.total_tokens == 9
    assert raw.result().headers["x-keepwarm-job"] == turn.attempt.job_id
    assert turn.attempt.request.sampling.seed == 1


def test_logprobs(sdk, worker, meanwhile):
    answer = meanwhile(sdk.chat.completions.create, model="demo", messages=HELLO, logprobs=True, top_logprobs=1)
    turn = worker.take()
    turn.say("é", [TokenLogprob("é", -0.25, (TokenLogprob("é", -0.25),))])
    turn.succeed()
    token = answer.result().choices[0].logprobs.content[0]
    assert (token.token, token.logprob, token.bytes) == ("é", -0.25, [195, 169])
    assert token.top_logprobs[0].token == "é"


def test_text_completion_whole_and_streamed(sdk, worker, meanwhile):
    whole = meanwhile(sdk.completions.create, model="demo", prompt="Say")
    worker.take().answer("a", "b")
    assert whole.result().choices[0].text == "ab"
    stream = meanwhile(lambda: list(sdk.completions.create(model="demo", prompt="Say", stream=True)))
    worker.take().answer("a", "b")
    assert [chunk.choices[0].text for chunk in stream.result()] == ["a", "b", ""]


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_jobs_of_their_own_in_one_answer(sdk, worker, meanwhile, stream):
    def read() -> list[str]:
        answer = sdk.chat.completions.create(model="demo", messages=HELLO, n=3, seed=5, stream=stream)
        if not stream:
            return [choice.message.content for choice in answer.choices]
        texts = ["", "", ""]
        for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        return texts

    texts = meanwhile(read)
    turns = [worker.take() for _ in range(3)]
    for piece in "abc":
        for turn in reversed(turns):
            turn.say(f"{turn.attempt.request.sampling.seed}{piece} ")
    for turn in turns:
        turn.succeed()
    assert texts.result() == ["5a 5b 5c ", "6a 6b 6c ", "7a 7b 7c "]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_answer_names_the_model_that_answered(sdk, worker, meanwhile, stream, n):
    worker.report(msgspec.structs.replace(DEMO_OFFER, fallback="other"), ModelOffer(
        id="other", context_length=256, slots=4, bytes=2_000_000, load_ms=50,
    ))  # fmt: skip

    def read() -> set[str]:
        answer = sdk.chat.completions.create(model="gpt-demo", messages=HELLO, n=n, stream=stream)
        return {part.model for part in answer} if stream else {answer.model}

    models = meanwhile(read)
    for _ in range(n):
        worker.hand_over("demo", "other")
    for _ in range(n):
        worker.take("other").answer("Hel", "lo")
    assert models.result() == {"other"}
    assert {job["model"] for job in sdk.get("/jobs", cast_to=object)["data"]} == {"other"}


def test_models(sdk):
    assert [model.id for model in sdk.models.list()] == ["demo"]
    details = sdk.models.retrieve("gpt-demo").model_extra["keepwarm"]
    assert (details["state"], details["context_length"]) == ("warm", 256)


def test_unknown_model(sdk):
    with pytest.raises(openai.NotFoundError, match="Did you mean"):
        sdk.chat.completions.create(model="demon", messages=HELLO)


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_that_is_too_long_is_a_bad_request_and_one_job(sdk, worker, meanwhile, stream):
    answer = meanwhile(sdk.chat.completions.create, model="demo", messages=HELLO, stream=stream)
    worker.take().fail("context_length_exceeded", "300 tokens, but 256 fit", "messages")
    with pytest.raises(openai.BadRequestError, match="300 tokens, but 256 fit") as caught:
        answer.result()
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert num_jobs(sdk) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_model_that_cannot_be_loaded_is_503_and_is_not_retried(sdk, worker, meanwhile, stream):
    answer = meanwhile(sdk.chat.completions.create, model="demo", messages=HELLO, stream=stream)
    worker.take().fail("model_load_failed", "bad file")
    with pytest.raises(openai.InternalServerError) as caught:
        answer.result()
    assert caught.value.status_code == 503
    assert num_jobs(sdk) == 1


def test_late_error_is_raised_from_the_stream(sdk, worker, meanwhile):
    stream = meanwhile(sdk.chat.completions.create, model="demo", messages=HELLO, stream=True)
    turn = worker.take()
    turn.say("Hel")
    chunks = iter(stream.result())
    assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "Hel"]
    turn.fail("runner_crashed", "the runner died")
    with pytest.raises(openai.APIError, match="the runner died"):
        next(chunks)


def test_reset_is_raised_from_the_stream_and_cancels_the_job(sdk, worker, meanwhile):
    stream = meanwhile(sdk.chat.completions.create, model="demo", messages=HELLO, stream=True)
    turn = worker.take()
    turn.say("Hel")
    chunks = iter(stream.result())
    turn.publish(Reset(2, "another engine"))
    with pytest.raises(openai.APIError, match="start over"):
        list(chunks)
    assert worker.await_cancel() == turn.attempt.job_id


def test_full_queue_is_a_rate_limit_error(store_settings, worker):
    settings = store_settings.model_copy(update={"max_queue_per_model": 1})
    with FrontServer(create_app(ApiSettings(), connect_backend(settings))) as server:
        sdk = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        sdk.post("/jobs", body={"model": "demo", "prompt": "first"}, cast_to=object)
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(model="demo", messages=HELLO)
    headers = caught.value.response.headers
    assert int(headers["retry-after"]) >= 1
    assert int(headers["retry-after-ms"]) == int(headers["retry-after"]) * 1000
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")


def test_client_that_leaves_its_stream_cancels_the_running_job(sdk, worker, meanwhile):
    stream = meanwhile(sdk.chat.completions.create, model="demo", messages=HELLO, stream=True)
    turn = worker.take()
    turn.say("Hel")
    stream.result().close()
    assert worker.await_cancel() == turn.attempt.job_id


def test_client_that_gives_up_waiting_cancels_the_queued_job(sdk):
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.2, max_retries=0).chat.completions.create(model="demo", messages=HELLO)
    (job,) = sdk.get("/jobs", cast_to=object)["data"]
    assert sdk.get(f"/jobs/{job['id']}?wait=10", cast_to=object)["state"] == "cancelled"


async def test_many_streams_at_once_stay_apart(server, worker):
    num_streams, num_pieces = 24, 20
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as sdk:

        async def read(number: int) -> str:
            messages: list[Any] = [{"role": "user", "content": f"{number}"}]
            stream = await sdk.chat.completions.create(model="demo", messages=messages, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        def play() -> None:
            turns = [worker.take() for _ in range(num_streams)]
            for piece in range(num_pieces):
                for turn in turns:
                    turn.say(f"{turn.attempt.request.messages[0].content}:{piece} ")
            for turn in turns:
                turn.succeed()

        texts, _ = await asyncio.gather(
            asyncio.gather(*(read(number) for number in range(num_streams))), asyncio.to_thread(play)
        )
    for number, text in enumerate(texts):
        assert text == "".join(f"{number}:{piece} " for piece in range(num_pieces))
