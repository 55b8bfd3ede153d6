"""Native jobs over real HTTP on a real store, with a scripted worker behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx2
import pytest

from app.backend import connect_backend
from app.main import create_app
from app.settings import ApiSettings
from tasks.quarantine import model_suspect
from tasks.settings import StoreSettings
from tasks.store.connection import connect
from tasks.store.quarantine_store import QuarantineStore
from tasks.stream_events import Loading, Queued, Reset, Started
from tests.support.front_server import FrontServer
from tests.support.scripted_worker import ScriptedWorker, Turn

pytestmark = pytest.mark.integration

BODY = {"model": "demo", "prompt": "Say"}


@pytest.fixture
def client(store_settings: StoreSettings, worker: ScriptedWorker) -> Iterator[httpx2.Client]:
    app = create_app(ApiSettings(max_body_bytes=65_536), connect_backend(store_settings))
    with FrontServer(app) as server, httpx2.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def numbered_blocks(text: str) -> list[str]:
    """The events of a stream that have an id, as they were on the wire."""
    return [block for block in text.split("\n\n") if "\nid: " in block]


def test_job_from_post_to_result(client, worker):
    posted = client.post("/v1/jobs", json=BODY | {"priority": "interactive", "deadline": 60})
    path = posted.headers["location"]
    assert (posted.status_code, posted.json()["state"], posted.json()["position"]) == (202, "queued", 0)
    turn = worker.take()
    assert client.get(path).json()["state"] == "running"
    turn.answer("Hel", "lo")
    job = client.get(path).json()
    assert (job["state"], job["worker"], job["attempt"], job["last_seq"]) == ("succeeded", "scripted-1", 1, 3)
    assert job["result"]["text"] == "Hello"
    assert job["result"]["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "cached_tokens": 3,
    }
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["deadline"]


def test_every_reading_of_the_numbered_events_has_the_same_bytes(client, worker, meanwhile):
    path = client.post("/v1/jobs", json=BODY).headers["location"] + "/events"
    live = meanwhile(client.get, path)
    turn = worker.take()
    turn.notify(Started(1, "scripted-1"))
    for piece in ("a\n", "é", "\u2028", "🙂"):
        turn.say(piece)
    turn.publish(Reset(2, "why"))
    turn.answer("b")
    whole = client.get(path).text
    assert numbered_blocks(live.result().text) == numbered_blocks(whole)
    for after in range(7):
        rest = client.get(path, headers={"Last-Event-ID": str(after)}).text
        assert numbered_blocks(rest) == numbered_blocks(whole)[after:]
    assert client.get(path, headers={"Last-Event-ID": "7"}).status_code == 204
    assert client.get(path, headers={"Last-Event-ID": "8"}).status_code == 400


def test_broken_connection_resumes_without_gap_or_repeat(client, worker, meanwhile):
    path = client.post("/v1/jobs", json=BODY).headers["location"] + "/events"
    turn = worker.take()
    seen: list[str] = []
    turn.say("0 ")
    for number in range(1, 8):
        # Each connection is cut after the first event that it brings, while the worker goes on.
        headers = {"Last-Event-ID": str(len(seen))}
        with client.stream("GET", path, headers=headers) as stream:
            lines = stream.iter_lines()
            turn.say(f"{number} ")
            event = [next(line for line in lines if line.startswith(kind)) for kind in ("id: ", "data: ")]
            seen.append(event[1])
            assert event[0] == f"id: {len(seen)}"
    turn.succeed()
    rest = client.get(path, headers={"Last-Event-ID": str(len(seen))}).text
    data = [line for line in rest.split("\n") if line.startswith("data: ")]
    assert [f'"text":"{number} "' in line for number, line in enumerate(seen + data[:-1])] == [True] * 8


def test_notices_of_a_waiting_job_reach_its_stream(client, worker, meanwhile):
    def play() -> Turn:
        turn = worker.take()
        worker.await_listener(turn.attempt.job_id)
        turn.notify(Queued(2))
        turn.notify(Loading("demo", 0.4))
        return turn

    chat = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "stream": True}
    playing = meanwhile(play)
    with client.stream("POST", "/v1/chat/completions", json=chat) as stream:
        lines = (line for line in stream.iter_lines() if line)
        assert [next(lines), next(lines)] == [": queued position=2", ": loading demo 40%"]
        playing.result().answer("Hello")
        assert list(lines)[-1] == "data: [DONE]"


def test_place_in_line_is_told_while_the_queue_stands(client, worker, meanwhile):
    client.post("/v1/jobs", json=BODY | {"priority": "interactive"})
    chat = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=chat) as stream:
        assert next(stream.iter_lines()) == ": queued position=1"


def test_wait_is_answered_by_the_end(client, worker, meanwhile):
    path = client.post("/v1/jobs", json=BODY).headers["location"]
    waiting = meanwhile(client.get, f"{path}?wait=20")
    worker.take().answer("Hello")
    assert waiting.result().json()["state"] == "succeeded"


def test_queued_job_is_cancelled_at_once(client, worker):
    path = client.post("/v1/jobs", json=BODY).headers["location"]
    assert client.delete(path).json()["state"] == "cancelled"
    assert client.delete(path).status_code == 200
    assert '"state":"cancelled"' in client.get(path + "/events").text


def test_running_job_is_asked_to_stop(client, worker):
    path = client.post("/v1/jobs", json=BODY).headers["location"]
    turn = worker.take()
    assert client.delete(path).json()["state"] == "running"
    assert worker.await_cancel() == turn.attempt.job_id


def test_same_idempotency_key_at_once_is_one_job(client):
    with ThreadPoolExecutor(10) as pool:
        posts = pool.map(
            lambda _: client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "k"}).json()["id"], range(20)
        )
        assert len(set(posts)) == 1
    other = client.post("/v1/jobs", json=BODY | {"prompt": "other"}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def test_broken_attempt_is_shown_while_the_job_goes_on(client, worker):
    path = client.post("/v1/jobs", json=BODY).headers["location"]
    worker.take().break_down("worker_lost", "The worker is gone.")
    job = client.get(path).json()
    assert (job["state"], job["attempt"], job["failures"], job["error"]) == ("queued", 1, 1, None)
    assert job["last_error"] == {"code": "worker_lost", "message": "The worker is gone.", "param": None}
    assert job["workers"] == ["scripted-1"]


def test_dead_letter_is_listed_until_it_is_requeued(client, worker):
    posted = client.post("/v1/jobs", json=BODY | {"priority": "batch", "deadline": 3600}).json()
    worker.take()
    for _ in range(3):
        worker.break_job(posted["id"], "worker_lost", "The worker is gone.")
    (dead,) = client.get("/v1/jobs?state=failed&dead=true").json()["data"]
    assert (dead["id"], dead["failures"], dead["error"]["code"]) == (posted["id"], 3, "worker_lost")
    assert dead["workers"] == ["scripted-1"] * 3
    assert client.get("/v1/jobs?dead=true&model=cold").json()["data"] == []

    reply = client.post(f"/v1/jobs/{dead['id']}/requeue")
    again = reply.json()
    assert (reply.status_code, reply.headers["location"]) == (202, f"/v1/jobs/{again['id']}")
    assert (again["state"], again["requeued_from"], again["priority"]) == ("queued", dead["id"], "batch")
    assert again["deadline"] == dead["deadline"]
    assert client.post(f"/v1/jobs/{dead['id']}/requeue").json()["id"] == again["id"]
    assert client.get("/v1/jobs?dead=true").json()["data"] == []
    old = client.get(f"/v1/jobs/{dead['id']}").json()
    assert (old["state"], old["requeued_as"]) == ("failed", again["id"])
    worker.take().answer("Hello")
    assert client.get(reply.headers["location"]).json()["result"]["text"] == "Hello"
    refused = client.post(f"/v1/jobs/{again['id']}/requeue")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_repeatable")
    assert client.post("/v1/jobs/job_0/requeue").status_code == 404


def test_quarantined_prompt_is_refused_until_it_is_lifted(client, worker):
    posted = client.post("/v1/jobs", json=BODY).json()
    worker.take()
    for _ in range(2):
        worker.break_job(posted["id"], "runner_crashed", "The runner died.")
    job = client.get(f"/v1/jobs/{posted['id']}").json()
    assert (job["state"], job["error"]["code"], job["last_error"]["code"]) == (
        "failed",
        "prompt_quarantined",
        "runner_crashed",
    )
    (entry,) = client.get("/v1/quarantine").json()["data"]
    assert (entry["kind"], entry["model"], entry["jobs"]) == ("prompt", "demo", [posted["id"]])
    refused = client.post("/v1/jobs", json=BODY)
    problem = refused.json()
    assert (refused.status_code, problem["code"], problem["cause"]) == (422, "prompt_quarantined", "runner_crashed")
    assert (problem["quarantine"], problem["until"][:16]) == (entry["id"], entry["until"][:16])
    assert f"keepwarm quarantine lift {entry['id']}" in problem["detail"]
    openai = client.post("/v1/completions", json=BODY)
    assert (openai.status_code, openai.json()["error"]["code"]) == (422, "prompt_quarantined")
    assert client.post(f"/v1/jobs/{posted['id']}/requeue").status_code == 422
    assert client.delete(f"/v1/quarantine/{entry['id']}").json()["id"] == entry["id"]
    gone = client.delete(f"/v1/quarantine/{entry['id']}")
    assert (gone.status_code, gone.headers["content-type"]) == (404, "application/problem+json")
    assert client.post(f"/v1/jobs/{posted['id']}/requeue").status_code == 202


def test_quarantined_model_is_failed_and_takes_no_jobs(client, worker, store_settings):
    ward = QuarantineStore(connect(store_settings), store_settings)
    ward.impose(model_suspect("demo", ("w1", "w2", "w3")))
    model = client.get("/v1/models/demo").json()["keepwarm"]
    assert model["state"] == "failed"
    assert "3 workers were lost" in model["reason"]
    refused = client.post("/v1/jobs", json=BODY)
    assert (refused.status_code, refused.json()["code"]) == (503, "model_quarantined")
    assert 3590 < int(refused.headers["retry-after"]) <= 3600
    assert client.delete("/v1/quarantine/model:demo").status_code == 200
    assert client.post("/v1/jobs", json=BODY).status_code == 202


def test_prompt_that_the_runner_finds_too_long_is_refused(client, worker, meanwhile):
    reply = meanwhile(client.post, "/v1/jobs", json=BODY | {"prompt": "x" * 400})
    worker.take().fail("context_length_exceeded", "The prompt has 400 tokens, but 256 fit", "messages")
    assert reply.result().status_code == 400
    assert reply.result().headers["content-type"] == "application/problem+json"
    assert "400 tokens" in reply.result().json()["detail"]


def test_pages_of_the_list_come_from_the_store(client, worker):
    ids = [client.post("/v1/jobs", json={"model": "demo", "prompt": str(n)}).json()["id"] for n in range(3)]
    first = client.get("/v1/jobs?limit=2").json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (ids[:0:-1], True)
    rest = client.get(f"/v1/jobs?limit=2&after={first['next_after']}").json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"], rest["next_after"]) == (ids[:1], False, None)
    assert client.get("/v1/jobs?after=job_gone").json()["code"] == "unknown_place"


def test_list_and_pool_come_from_the_store(client, worker):
    ids = [client.post("/v1/jobs", json=BODY).json()["id"] for _ in range(3)]
    listed = client.get("/v1/jobs?state=queued").json()["data"]
    assert [(job["id"], job["position"]) for job in listed] == [(ids[2], 2), (ids[1], 1), (ids[0], 0)]
    pool = client.get("/v1/pool").json()
    assert pool["workers"][0]["runners"][0]["model"] == "demo"
    assert client.post("/v1/models/demo/warm").status_code == 202
    assert client.get("/readyz").json() == {"status": "ok", "workers": 1}
    assert "keepwarm_store_up 1.0" in client.get("/metrics").text


def test_chunked_body_over_the_limit_is_cut_off(client):
    def parts() -> Iterator[bytes]:
        yield from (b"x" * 4096 for _ in range(64))

    reply = client.post("/v1/jobs", content=parts(), headers={"content-type": "application/json"})
    assert reply.status_code == 413
    assert client.get("/livez").status_code == 200


def test_store_that_is_away_is_said_so_everywhere(tmp_path):
    settings = StoreSettings(redis_url=f"unix://{tmp_path}/nobody.sock", home=tmp_path)
    app = create_app(ApiSettings(), connect_backend(settings))
    with FrontServer(app) as server, httpx2.Client(base_url=server.url, timeout=20) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").json()["missing"] == "store"
        reply = client.post("/v1/jobs", json=BODY)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert client.post("/v1/completions", json=BODY).json()["error"]["code"] == "store_unavailable"
        assert "keepwarm_store_up 0.0" in client.get("/metrics").text
