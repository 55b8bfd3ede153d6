"""The native job routes, against fakes of the store."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import ApiSettings
from tasks.errors import IdempotencyMismatch, QueueFull, StoreUnavailable
from tasks.jobs import JobError, JobId, JobResult, JobState, Priority, Usage
from tasks.stream_events import End, Queued, Reset, Tokens
from tests.support.front_fakes import NOW_MS, FakeBackend, RawRequest, front_client, numbered, succeeded

BODY = {"model": "demo", "prompt": "Say"}
EVENTS = (Tokens("a\n", (1,)), Reset(2, "why"), Tokens("é", (2, 3)), succeeded())


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend(batches=numbered(*EVENTS))


@pytest.fixture
def client(fake: FakeBackend) -> Iterator[TestClient]:
    with front_client(fake) as client:
        yield client


def post(client: TestClient, **fields) -> JobId:
    return JobId(client.post("/v1/jobs", json=BODY | fields).json()["id"])


def change(fake: FakeBackend, job_id: JobId, **fields) -> None:
    fake.jobs[job_id] = msgspec.structs.replace(fake.jobs[job_id], **fields)


# ---- POST


@pytest.mark.parametrize(
    ("fields", "param", "advice"),
    [
        ({"dedline": 5}, "dedline", "did you mean 'deadline'?"),
        ({"maxTokens": 5}, "maxTokens", "did you mean 'max_tokens'?"),
        ({"webhook": {"url": "https://a.example/", "secert": "x"}}, "webhook.secert", "did you mean 'secret'?"),
        ({"a[0]": 5}, "a[0]", "/docs lists"),
        ({"x" * 10_000: 5}, "x" * 64, "/docs lists"),
    ],
)
def test_unknown_field_is_refused_with_the_one_that_was_meant(client, fake, fields: dict, param: str, advice: str):
    reply = client.post("/v1/jobs", json=BODY | fields)
    assert (reply.status_code, reply.json()["code"], reply.json()["param"]) == (400, "invalid_request", param)
    assert reply.json()["detail"].startswith(f"{param}: there is no such field; ")
    assert advice in reply.json()["detail"]
    assert not fake.submitted


def test_openai_routes_take_unknown_fields(client):
    """Official clients and other servers have fields that nobody here reads."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "user": "me", "dedline": 5}
    assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_document_says_that_jobs_have_no_further_fields(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["JobBody"]["additionalProperties"] is False
    assert "additionalProperties" not in schemas["ChatBody"]


def test_posted_job_is_accepted_with_its_place(client, fake):
    reply = client.post("/v1/jobs", json=BODY | {"priority": "batch", "max_tokens": 5})
    job = reply.json()
    assert reply.status_code == 202
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job | {"id": "", "created_at": ""} == {
        "id": "",
        "object": "job",
        "state": "queued",
        "model": "demo",
        "attempt": 0,
        "failures": 0,
        "priority": "batch",
        "created_at": "",
        "started_at": None,
        "finished_at": None,
        "deadline": None,
        "worker": None,
        "workers": [],
        "position": 0,
        "predicted_wait_s": None,
        "last_seq": 0,
        "result": None,
        "error": None,
        "last_error": None,
        "requeued_from": None,
        "requeued_as": None,
        "metadata": None,
        "webhook": None,
        "batch_id": None,
    }
    assert fake.submitted[0].priority is Priority.BATCH
    assert fake.submitted[0].request.max_tokens == 5


@pytest.mark.parametrize(
    ("deadline", "expected_ms"),
    [("2024-01-01T00:00:00Z", 1_704_067_200_000), ("2024-01-01T01:00:00+01:00", 1_704_067_200_000)],
)
def test_deadline_as_a_time(client, fake, deadline, expected_ms):
    post(client, deadline=deadline)
    assert fake.submitted[0].deadline_ms == expected_ms


def test_deadline_in_seconds_counts_from_the_stores_now(client, fake):
    post(client, deadline=30)
    assert 30_000 <= fake.submitted[0].deadline_ms - NOW_MS < 40_000


@pytest.mark.parametrize("deadline", [0, -1, "2020-01-01T00:00:00Z", "tomorrow", "2024-01-01T00:00:00", True, []])
def test_deadline_that_has_passed_or_is_no_time_is_refused(client, fake, deadline):
    reply = client.post("/v1/jobs", json=BODY | {"deadline": deadline})
    assert reply.status_code == 400
    assert reply.json()["param"] == "deadline"
    assert not fake.submitted


@pytest.mark.parametrize("body", [{"model": "demo"}, BODY | {"messages": [{"role": "user", "content": "x"}]}])
def test_exactly_one_of_messages_and_prompt(client, body):
    reply = client.post("/v1/jobs", json=body)
    assert reply.status_code == 400
    assert reply.headers["content-type"] == "application/problem+json"


def test_idempotency_key_leads_to_the_same_job(client):
    first, second = (client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "k"}).json() for _ in range(2))
    assert first["id"] == second["id"]


def test_idempotency_mismatch_is_422(client, fake):
    fake.error = IdempotencyMismatch("other body")
    reply = client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "k"})
    assert reply.status_code == 422
    assert reply.json()["type"] == "urn:keepwarm:error:idempotency_mismatch"


def test_full_queue_is_a_problem_with_its_evidence(client, fake):
    fake.error = QueueFull(scope="'demo'", depth=5, limit=5, retry_after_s=7)
    reply = client.post("/v1/jobs", json=BODY)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert reply.json() == {
        "type": "urn:keepwarm:error:queue_full",
        "title": "Queue full",
        "status": 429,
        "detail": "5 jobs already wait for 'demo' (limit 5). Retry in about 7 s.",
        "instance": "/v1/jobs",
        "code": "queue_full",
        "retry_after_s": 7,
        "scope": "'demo'",
        "depth": 5,
        "limit": 5,
    }


def test_doubtful_prompt_that_is_too_long_is_refused_with_the_count(client, fake):
    error = JobError(code="context_length_exceeded", message="300 tokens, holds 256", param="messages")
    fake.batches = [[], *numbered(End(state=JobState.FAILED, error=error))]
    reply = client.post("/v1/jobs", json=BODY | {"prompt": "x" * 300})
    assert reply.status_code == 400
    assert reply.json()["detail"] == "300 tokens, holds 256"
    assert reply.json()["param"] == "prompt"


def test_doubtful_prompt_that_fits_is_accepted_with_its_first_token(client):
    assert client.post("/v1/jobs", json=BODY | {"prompt": "x" * 300}).status_code == 202


def test_doubtful_prompt_that_nobody_counts_in_time_is_accepted(fake):
    fake.batches, fake.stays_open = [], True
    with TestClient(
        create_app(ApiSettings(prompt_check_s=0.01), fake.backend()), base_url="http://127.0.0.1"
    ) as client:
        assert client.post("/v1/jobs", json=BODY | {"prompt": "x" * 300}).status_code == 202
    assert fake.num_followers == 0


# ---- GET, DELETE


def test_finished_job_has_its_result(client, fake):
    job_id = post(client)
    usage = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
    result = JobResult(text="Hello", finish_reason="stop", usage=usage)
    change(fake, job_id, state=JobState.SUCCEEDED, finished_ms=NOW_MS + 1500, result=result, last_seq=4)
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "succeeded"
    assert job["finished_at"] == "2023-11-14T22:13:21.500000Z"
    assert job["result"] == {
        "text": "Hello",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cached_tokens": 3},
    }
    assert job["position"] is None


def test_failed_job_has_its_error(client, fake):
    job_id = post(client)
    change(fake, job_id, state=JobState.FAILED, error=JobError(code="model_load_failed", message="bad file"))
    assert client.get(f"/v1/jobs/{job_id}").json()["error"] == {
        "code": "model_load_failed",
        "message": "bad file",
        "param": None,
    }


def test_unknown_job_is_a_404_problem(client):
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/events")]:
        reply = client.request(method, f"/v1/jobs/job_none{path}")
        assert reply.status_code == 404
        assert reply.json()["code"] == "job_not_found"
        assert reply.json()["instance"] == f"/v1/jobs/job_none{path}"


def test_list_is_read_page_by_page(client, fake):
    ids = [post(client) for _ in range(5)]
    seen: list[str] = []
    after: dict[str, str] = {}
    for has_more in (True, True, False):
        page = client.get("/v1/jobs", params={"limit": 2, **after}).json()
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] is has_more
        after = {"after": page["next_after"]}
    assert seen == list(reversed(ids))
    for refused in ("/v1/jobs?after=job_gone", "/v1/jobs?after=job_gone&dead=true"):
        reply = client.get(refused)
        assert (reply.status_code, reply.json()["param"]) == (400, "after")


def test_list_is_newest_first_and_filtered(client, fake):
    ids = [post(client), post(client, model="cold"), post(client)]
    change(fake, ids[0], state=JobState.FAILED)
    listed = client.get("/v1/jobs").json()["data"]
    assert [job["id"] for job in listed] == ids[::-1]
    assert [job["id"] for job in client.get("/v1/jobs?limit=1").json()["data"]] == ids[-1:]
    assert [job["id"] for job in client.get("/v1/jobs?state=failed").json()["data"]] == ids[:1]
    assert [job["id"] for job in client.get("/v1/jobs?model=cold").json()["data"]] == [ids[1]]
    assert client.get("/v1/jobs?state=lost").json()["param"] == "state"


def test_cancel_is_idempotent(client):
    job_id = post(client)
    replies = [client.delete(f"/v1/jobs/{job_id}") for _ in range(2)]
    assert [(reply.status_code, reply.json()["state"]) for reply in replies] == [(200, "cancelled")] * 2


def test_wait_returns_when_the_job_ends(client, fake):
    job_id = post(client)
    assert client.get(f"/v1/jobs/{job_id}?wait=30").status_code == 200
    assert fake.num_followers == 0


def test_wait_returns_at_its_limit(client, fake):
    fake.batches, fake.stays_open = [], True
    assert client.get(f"/v1/jobs/{post(client)}?wait=0.01").json()["state"] == "queued"
    assert fake.num_followers == 0


# ---- events


def test_events_are_named_and_numbered_with_bare_newlines(client):
    text = client.get(f"/v1/jobs/{post(client)}/events").text
    assert text == (
        'event: tokens\nid: 1\ndata: {"type":"tokens","text":"a\\n","ids":[1]}\n\n'
        'event: reset\nid: 2\ndata: {"type":"reset","attempt":2,"reason":"why"}\n\n'
        'event: tokens\nid: 3\ndata: {"type":"tokens","text":"é","ids":[2,3]}\n\n'
        'event: end\nid: 4\ndata: {"type":"end","state":"succeeded","finish_reason":"stop"}\n\n'
    )


def test_events_end_in_order_when_the_store_stays_away(client, fake):
    fake.batches, fake.breaks = fake.batches[:1], StoreUnavailable("away")
    *events, notice, nothing = client.get(f"/v1/jobs/{post(client)}/events").text.split("\n\n")
    assert [event.splitlines()[1] for event in events] == ["id: 1"]
    assert notice.startswith(": the store is away; go on with Last-Event-ID")
    assert nothing == ""


def test_events_resume_after_the_last_id(client, fake):
    job_id = post(client)
    change(fake, job_id, last_seq=4)
    whole = client.get(f"/v1/jobs/{job_id}/events").text
    for after in range(4):
        rest = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(after)}).text
        assert rest == client.get(f"/v1/jobs/{job_id}/events?after={after}").text
        assert whole.endswith(rest)
        assert rest.startswith(("event: tokens", "event: reset", "event: end"))


def test_header_wins_over_the_query(client, fake):
    job_id = post(client)
    change(fake, job_id, last_seq=4)
    text = client.get(f"/v1/jobs/{job_id}/events?after=1", headers={"Last-Event-ID": "3"}).text
    assert text.startswith("event: end")


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "5", "²", ""])
def test_resume_point_that_cannot_be_is_refused(client, fake, after):
    job_id = post(client)
    change(fake, job_id, last_seq=4)
    reply = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": after.encode()})
    assert reply.status_code == 400
    assert reply.json()["param"] == "Last-Event-ID"


def test_reader_that_has_everything_is_told_to_stop(client, fake):
    job_id = post(client)
    change(fake, job_id, last_seq=4, state=JobState.SUCCEEDED)
    assert client.get(f"/v1/jobs/{job_id}/events?after=4").status_code == 204


def test_notices_have_no_id(client, fake):
    fake.batches = [[], [(None, Queued(2))], *numbered(succeeded())]
    fake.line_position = 5
    text = client.get(f"/v1/jobs/{post(client)}/events").text
    assert text.startswith(
        'event: queued\ndata: {"type":"queued","position":5}\n\nevent: queued\ndata: {"type":"queued","position":2}\n\n'
    )


async def test_reader_that_leaves_cancels_nothing(fake):
    fake.stays_open = True
    fake.batches = fake.batches[:1]
    app = create_app(ApiSettings(), fake.backend())
    posted = RawRequest(app, "POST", "/v1/jobs", BODY)
    await posted.done
    request = RawRequest(app, "GET", posted.headers["location"] + "/events")
    await request.has_body.wait()
    request.leave()
    await request.done
    assert not fake.cancelled
    assert fake.num_followers == 0
