"""A line goes to the real route of a front on fake ports, and its outcome becomes a line of a file."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import msgspec
import pytest

from app.batches.endpoints import endpoints_of
from app.batches.line_call import LineAnswer, LineCaller, line_caller, patient_front
from app.batches.line_results import answered, unanswered
from app.settings import ApiSettings
from tasks import errors
from tasks.batches import ENDPOINTS, BatchState
from tasks.fleet import ModelKind
from tasks.job_request import JobRequest
from tasks.jobs import JobError, JobState, Priority, Usage
from tasks.order import Order
from tasks.stream_events import End, Tokens, Vectors
from tests.support.front_fakes import FakeBackend, Submission, chat, demo_worker, numbered, succeeded

CHAT, TEXT, EMBEDDINGS = ENDPOINTS
USAGE = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)


def unheard() -> None:
    """Nobody waits for the admission."""


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend(batches=numbered(Tokens("Hel", (1,)), Tokens("lo", (2,)), succeeded(usage=USAGE)))


@pytest.fixture
async def caller(fake: FakeBackend) -> AsyncIterator[LineCaller]:
    async with line_caller(ApiSettings(), fake.backend(), "batch_1") as caller:
        yield caller


def decoded(answer: LineAnswer) -> dict:
    return msgspec.json.decode(answer.body)


def test_a_front_has_all_endpoints_of_batches(fake: FakeBackend):
    assert endpoints_of(patient_front(ApiSettings(), fake.backend(), "batch_1", lambda key: None)) == ENDPOINTS


async def test_line_is_in_before_it_is_answered_and_a_refused_one_never(fake: FakeBackend, caller: LineCaller):
    came_in = asyncio.Event()
    fake.batches, fake.stays_open = [], True
    answering = asyncio.create_task(caller.call(CHAT, chat(n=2), "batch_1/7", came_in.set))
    async with asyncio.timeout(5):
        await came_in.wait()
    assert not answering.done()
    assert fake.submitted
    answering.cancel()
    came_in.clear()
    assert not (await caller.call(CHAT, chat(model="nobody"), "batch_1/8", came_in.set)).is_ok
    assert not came_in.is_set()


@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
async def test_line_is_admitted_at_batch_priority_under_its_key(fake: FakeBackend, caller: LineCaller, endpoint: str):
    body = chat(priority="interactive", stream=False, prompt="Hello")
    answer = await caller.call(endpoint, body, "batch_1/7", unheard)
    assert (answer.is_ok, answer.retry_after_s, answer.error_code) == (True, None, None)
    (submitted,) = fake.submitted
    assert (submitted.priority, submitted.idempotency_key) == (Priority.BATCH, "batch_1/7")
    assert answer.job_ids == tuple(fake.jobs)
    assert [job.batch_id for job in fake.jobs.values()] == ["batch_1"]
    again = await caller.call(endpoint, body, "batch_1/7", unheard)
    assert (again.job_ids, decoded(again)) == (answer.job_ids, decoded(answer))


async def test_several_choices_are_several_jobs(fake: FakeBackend, caller: LineCaller):
    answer = await caller.call(CHAT, chat(n=3), "batch_1/7", unheard)
    assert len(answer.job_ids) == 3
    assert set(answer.job_ids) == set(fake.jobs)


async def test_embeddings_are_answered_too(fake: FakeBackend, caller: LineCaller):
    worker = demo_worker()
    offers = [msgspec.structs.replace(offer, kind=ModelKind.EMBED, embedding_length=2) for offer in worker.offers]
    fake.workers = (msgspec.structs.replace(worker, offers=tuple(offers)),)
    end = End(state=JobState.SUCCEEDED, usage=Usage(prompt_tokens=7, completion_tokens=0))
    fake.batches = [[(1, Vectors((struct.pack("<2f", 0.5, 1.0),)))], [(2, end)]]
    answer = await caller.call(EMBEDDINGS, {"model": "demo", "input": "a"}, "batch_1/7", unheard)
    assert decoded(answer)["data"][0]["embedding"] == [0.5, 1.0]
    assert fake.submitted[0].priority is Priority.BATCH
    assert answered("batch_1", 7, "a", answer).input_tokens == 7


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (chat(model="nobody"), 404, "model_not_found", "model"),
        (chat(temperature=9), 400, "invalid_request", "temperature"),
        (chat(stream=True), 400, "invalid_request", "stream"),
        ({"model": "demo"}, 400, "invalid_request", "messages"),
    ],
)
async def test_wrong_line_is_refused_as_a_direct_request(
    caller: LineCaller, body: dict, status: int, code: str, param: str
):
    answer = await caller.call(CHAT, body, "batch_1/7", unheard)
    assert (answer.status, answer.error_code, answer.retry_after_s) == (status, code, None)
    assert decoded(answer)["error"]["param"] == param


async def test_what_is_not_the_lines_fault_is_to_be_sent_again(fake: FakeBackend, caller: LineCaller):
    fake.error = errors.QueueFull(scope="'demo'", depth=5, limit=5, retry_after_s=7)
    assert (await caller.call(CHAT, chat(), "batch_1/7", unheard)).retry_after_s == 7
    fake.error = errors.QueueFull(scope="'demo'", depth=5, limit=5, retry_after_s=300)
    assert (await caller.call(CHAT, chat(), "batch_1/7", unheard)).retry_after_s == 30
    fake.error = errors.StoreUnavailable("away")
    assert (await caller.call(CHAT, chat(), "batch_1/7", unheard)).retry_after_s == 1


async def test_line_of_several_choices_is_sent_again_for_those_that_were_refused(
    fake: FakeBackend, caller: LineCaller, monkeypatch: pytest.MonkeyPatch
):
    admit = fake.submit

    def one_only(request: JobRequest, order: Order) -> Submission:
        if fake.jobs:
            raise errors.QueueFull(scope="'demo'", depth=5, limit=5, retry_after_s=7)
        return admit(request, order)

    monkeypatch.setattr(fake, "submit", one_only)
    assert (await caller.call(CHAT, chat(n=2), "batch_1/7", unheard)).retry_after_s == 7
    (first,) = fake.jobs
    monkeypatch.undo()
    answer = await caller.call(CHAT, chat(n=2), "batch_1/7", unheard)
    assert (answer.is_ok, answer.job_ids, answer.job_ids[0]) == (True, tuple(fake.jobs), first)
    assert (len(fake.jobs), fake.cancelled) == (2, [])


async def test_failed_job_is_the_lines_last_word(fake: FakeBackend, caller: LineCaller):
    error = JobError(code="model_load_failed", message="bad file")
    fake.batches = numbered(End(state=JobState.FAILED, error=error))
    answer = await caller.call(CHAT, chat(), "batch_1/7", unheard)
    assert (answer.status, answer.error_code, answer.retry_after_s) == (503, "model_load_failed", None)


async def test_outcome_is_worded_in_openais_form(caller: LineCaller):
    answer = await caller.call(CHAT, chat(), "batch_1/7", unheard)
    result = answered("batch_1", 7, "my-id", answer)
    entry = msgspec.json.decode(result.entry)
    assert (result.is_ok, result.input_tokens, result.cached_tokens, result.output_tokens) == (True, 3, 1, 2)
    assert entry == {
        "id": entry["id"],
        "custom_id": "my-id",
        "response": {"status_code": 200, "request_id": answer.request_id, "body": decoded(answer)},
        "error": None,
    }
    assert entry["id"].startswith("batch_req_")
    assert msgspec.json.decode(answered("batch_1", 7, "my-id", answer).entry)["id"] == entry["id"]
    assert msgspec.json.decode(answered("batch_1", 8, "my-id", answer).entry)["id"] != entry["id"]


def test_line_that_its_batch_left_behind_has_an_error_and_no_response():
    entry = msgspec.json.decode(unanswered("batch_1", 7, "my-id", BatchState.EXPIRED).entry)
    assert (entry["response"], entry["error"]["code"]) == (None, "batch_expired")
