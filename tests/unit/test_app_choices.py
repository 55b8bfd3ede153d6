"""n > 1 over HTTP, against fakes of the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator

import pytest
from starlette.testclient import TestClient

from app.backend import Batch
from app.choices import choice_requests
from app.main import create_app
from app.settings import ApiSettings
from tasks.errors import QueueFull, StoreUnavailable
from tasks.generation import MAX_SEED, GenerationRequest, SamplingParams
from tasks.job_request import JobRequest
from tasks.jobs import Job, JobError, JobId, JobState, Usage
from tasks.order import Order
from tasks.store.token_reader import Follower
from tasks.stream_events import End, Reset, Tokens
from tests.support.front_fakes import FakeBackend, RawRequest, Submission, chat, front_client, numbered, sse_data
from tests.support.front_fakes import succeeded as ended

KEY = {"Idempotency-Key": "k"}
ROUTES = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])


def usage(num_tokens: int) -> Usage:
    return Usage(prompt_tokens=7, completion_tokens=num_tokens, cached_tokens=2)


class Several(FakeBackend):
    """Plays to each follower the batches of its job: `plays` in the order of admission, the last one to all others."""

    def __init__(self, *plays: list[Batch]) -> None:
        super().__init__()
        self.plays = plays
        self.refuse_after: int | None = None
        self.refusal: Exception = QueueFull(scope="'demo'", depth=5, limit=5, retry_after_s=7)

    def submit(self, request: JobRequest, order: Order) -> Submission:
        if len(self.submitted) == self.refuse_after:
            raise self.refusal
        return super().submit(request, order)

    async def follow_batches(
        self, job_id: JobId, after_seq: int = 0, *, follower: Follower | None = None
    ) -> AsyncGenerator[Batch, None]:
        if self.jobs[job_id].state is JobState.CANCELLED:
            yield numbered(End(state=JobState.CANCELLED))[0]
            return
        index = list(self.jobs).index(job_id)
        self.batches = self.plays[min(index, len(self.plays) - 1)]
        async for batch in super().follow_batches(job_id, after_seq, follower=follower):
            yield batch


FAILED = End(state=JobState.FAILED, error=JobError(code="runner_crashed", message="dead"))
FIRST = numbered(Tokens("Hel", (1,)), Tokens("lo", (2,)), ended(usage=usage(2)))
SECOND = numbered(Tokens("Bye", (3,)), ended(usage=usage(1), finish_reason="length"))


@pytest.fixture
def fake() -> Several:
    return Several(FIRST, SECOND)


@pytest.fixture
def client(fake: Several) -> Iterator[TestClient]:
    with front_client(fake) as client:
        yield client


def ask(client: TestClient, path: str, **fields):
    return client.post(path, json=chat(prompt="Say", **{"n": 2} | fields))


def text_of(choice: dict) -> str:
    return choice["message"]["content"] if "message" in choice else choice["text"]


def delta_of(choice: dict) -> str:
    return choice["delta"].get("content", "") if "delta" in choice else choice["text"]


@ROUTES
def test_whole_answer_has_all_choices_in_order_and_the_sum_of_their_usage(client, fake, path):
    reply = ask(client, path)
    body = reply.json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [text_of(choice) for choice in body["choices"]] == ["Hello", "Bye"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length"]
    counts = (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"], body["usage"]["total_tokens"])
    assert counts == (7, 3, 10)
    assert reply.headers["x-keepwarm-job"] == ", ".join(fake.jobs)


@ROUTES
def test_stream_carries_all_choices_under_one_id_and_ends_once(client, path):
    reply = ask(client, path, stream=True, stream_options={"include_usage": True})
    *chunks, last, done = sse_data(reply.text)
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in (*chunks, last)}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert {choice["index"] for choice in choices} == {0, 1}
    for index, (text, reason) in enumerate([("Hello", "stop"), ("Bye", "length")]):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(map(delta_of, own)) == text
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + [reason]
        if "delta" in own[0]:
            assert own[0]["delta"] == {"role": "assistant", "content": ""}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)


def test_choices_differ_by_their_seeds_alone_and_the_first_is_the_request_itself():
    request = GenerationRequest(model="m", prompt="x", sampling=SamplingParams(seed=MAX_SEED - 1, top_k=3))
    first, second, third = choice_requests(request, 3)
    assert first == request
    assert (second.sampling.seed, third.sampling.seed) == (0, 1)
    assert second.sampling.top_k == 3


def test_refused_choice_leaves_none_of_the_others_behind(client, fake):
    fake.refuse_after = 2
    reply = ask(client, "/v1/chat/completions", n=4)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert fake.cancelled == list(fake.jobs)
    assert len(fake.jobs) == 2
    assert fake.listening == []


def test_choice_that_breaks_at_admission_leaves_none_of_the_others_behind(client, fake):
    fake.refuse_after, fake.refusal = 2, RuntimeError("a bug")
    assert ask(client, "/v1/chat/completions", n=4).status_code == 500
    assert fake.cancelled == list(fake.jobs)
    assert len(fake.jobs) == 2


@pytest.mark.parametrize("refused_after", [2, None])
def test_choice_that_cannot_be_cancelled_keeps_no_other_alive(client, fake, refused_after):
    fake.refuse_after, fake.plays, fake.stays_open = refused_after, (numbered(FAILED), []), True
    cancelled: list[JobId] = []

    def cancel(job_id: JobId) -> Job:
        cancelled.append(job_id)
        raise StoreUnavailable("away")

    fake.cancel = cancel
    reply = ask(client, "/v1/chat/completions", n=3)
    assert reply.json()["error"]["code"] == ("runner_crashed" if refused_after is None else "queue_full")
    assert cancelled == list(fake.jobs)


@pytest.mark.parametrize("stream", [False, True])
def test_failed_choice_is_the_answer_and_ends_the_others(client, fake, stream):
    fake.plays = (numbered(FAILED), [])
    fake.stays_open = True
    reply = ask(client, "/v1/chat/completions", stream=stream)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "runner_crashed")
    assert reply.headers["x-should-retry"] == "false"
    assert fake.cancelled == list(fake.jobs)
    assert fake.num_followers == 0


@pytest.mark.parametrize(
    ("later", "code"), [((FAILED,), "runner_crashed"), ((Reset(2, "other"),), "stream_reset"), ((), "internal_error")]
)
def test_choice_that_breaks_later_ends_the_stream_in_band(client, fake, later, code):
    fake.plays = (numbered(Tokens("Hel", (1,)), *later), SECOND)
    *_, last = sse_data(ask(client, "/v1/chat/completions", stream=True).text)
    assert last["error"]["code"] == code
    assert fake.cancelled == list(fake.jobs)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("headers", [{}, KEY])
def test_store_that_is_away_for_too_long_ends_choices_that_nobody_can_ask_for_again(client, fake, stream, headers):
    fake.plays, fake.breaks = ([],), StoreUnavailable("away")
    reply = client.post("/v1/chat/completions", json=chat(n=2, stream=stream), headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    assert len(fake.jobs) == 2
    assert fake.cancelled == ([] if headers else list(fake.jobs))


def test_choices_that_take_too_long_are_cancelled(fake):
    fake.plays, fake.stays_open = (FIRST[:1],), True
    with front_client(fake, sync_timeout_s=0.01) as client:
        assert ask(client, "/v1/chat/completions").status_code == 504
    assert fake.cancelled == list(fake.jobs)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_cancels_all_choices(fake, stream):
    fake.plays, fake.stays_open = (FIRST[:1],), True
    app = create_app(ApiSettings(hold_back_s=0), fake.backend())
    request = RawRequest(app, "POST", "/v1/chat/completions", chat(n=3, stream=stream))
    if stream:
        await request.has_body.wait()
    request.leave()
    await request.done
    assert sorted(fake.cancelled) == sorted(fake.jobs)
    assert len(fake.jobs) == 3
    assert fake.num_followers == 0


def test_repeat_under_an_idempotency_key_attaches_to_every_choice(client, fake):
    replies = [client.post("/v1/chat/completions", json=chat(n=2), headers=KEY) for _ in range(2)]
    assert replies[0].content == replies[1].content
    assert len(fake.jobs) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_refused_choice_under_a_key_is_all_that_the_repeat_admits(client, fake, stream):
    body = chat(n=2, stream=stream)
    fake.refuse_after = 1
    assert client.post("/v1/chat/completions", json=body, headers=KEY).status_code == 429
    admitted = list(fake.jobs)
    fake.refuse_after = None
    reply = client.post("/v1/chat/completions", json=body, headers=KEY)
    assert (reply.status_code, "error" in reply.text) == (200, False)
    assert reply.headers["x-keepwarm-job"] == ", ".join(fake.jobs)
    assert (list(fake.jobs)[:1], len(fake.jobs), fake.cancelled) == (admitted, 2, [])


def test_choices_under_a_key_that_take_too_long_go_on(fake):
    fake.plays, fake.stays_open = (FIRST[:1],), True
    with front_client(fake, sync_timeout_s=0.01) as client:
        reply = client.post("/v1/chat/completions", json=chat(n=2), headers=KEY)
    assert (reply.status_code, fake.cancelled) == (504, [])
    assert "same Idempotency-Key" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("later", "code"), [((Reset(2, "other"),), "stream_reset"), ((), "internal_error")])
def test_choices_under_a_key_outlive_a_stream_that_breaks(client, fake, later, code):
    fake.plays = (numbered(Tokens("Hel", (1,)), *later), SECOND)
    reply = client.post("/v1/chat/completions", json=chat(n=2, stream=True), headers=KEY)
    assert sse_data(reply.text)[-1]["error"]["code"] == code
    assert fake.cancelled == []


async def test_choice_that_is_silent_behind_a_complete_one_keeps_the_stream_alive(fake):
    fake.plays, fake.stays_open = (FIRST, []), True
    app = create_app(ApiSettings(hold_back_s=0, keep_alive_s=1), fake.backend())
    request = RawRequest(app, "POST", "/v1/completions", chat(prompt="Say", n=2, stream=True))
    async with asyncio.timeout(5):
        while b": keep-alive" not in request.body.partition(b'"finish_reason":"stop"')[2]:
            await asyncio.sleep(0)
    request.leave()
    await request.done


def test_failed_choice_ends_the_others_also_under_a_key(client, fake):
    """The answer can't become complete any more, whoever asks for it."""
    fake.plays = (numbered(FAILED), [])
    fake.stays_open = True
    assert client.post("/v1/chat/completions", json=chat(n=2), headers=KEY).status_code == 500
    assert fake.cancelled == list(fake.jobs)
