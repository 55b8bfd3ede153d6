"""Admission over real HTTP on a real store: memory, rates, deadlines, repeated requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest

from app.backend import connect_backend
from app.main import create_app
from app.settings import ApiSettings
from tasks.settings import StoreSettings
from tasks.store import gauges, keys
from tasks.store.connection import Client, connect
from tests.support.front_server import FrontServer
from tests.support.scripted_worker import DEMO_OFFER, PATIENCE_S, ScriptedWorker

pytestmark = pytest.mark.integration

BODY = {"model": "demo", "prompt": "Say"}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Say"}]}
KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}


@pytest.fixture(autouse=True)
def always_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "SAMPLE_S", 0.0)


@pytest.fixture
def store(store_settings: StoreSettings) -> Iterator[Client]:
    client = connect(store_settings)
    yield client
    client.close()


@contextmanager
def front(settings: StoreSettings) -> Iterator[httpx2.Client]:
    app = create_app(ApiSettings(), connect_backend(settings))
    with FrontServer(app) as server, httpx2.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def client(store_settings: StoreSettings, worker: ScriptedWorker) -> Iterator[httpx2.Client]:
    with front(store_settings) as client:
        yield client


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def measured(store: Client, *, mean_ms: float, samples: int = 10) -> None:
    store.hset(keys.SERVICE, "demo", f"{mean_ms:.3f} {samples} 1")


# ---- memory


@contextmanager
def full_store(store: Client, fill: float) -> Iterator[None]:
    store.config_set("maxmemory", int(store.info("memory")["used_memory"] / fill))
    try:
        yield
    finally:
        store.config_set("maxmemory", 0)


def test_admission_stops_before_the_store_is_full_and_running_streams_finish(client, store, worker):
    posted = client.post("/v1/jobs", json=BODY, headers=KEY)
    path = posted.headers["location"]
    turn = worker.take()
    turn.say("Hel")
    with full_store(store, 0.85):
        refused = client.post("/v1/jobs", json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert 0.8 <= refused.json()["fill"] < 0.95
        openai = client.post("/v1/chat/completions", json=CHAT)
        assert (openai.status_code, openai.json()["error"]["code"]) == (503, "store_full")
        attached = client.post("/v1/jobs", json=BODY, headers=KEY)  # nothing new is stored for it
        assert (attached.status_code, attached.headers["location"]) == (202, path)
        turn.answer("lo")
        assert client.get(path).json()["result"]["text"] == "Hello"
    with full_store(store, 0.5):
        assert client.post("/v1/jobs", json=BODY).status_code == 202


# ---- rates


def test_run_times_are_measured_by_the_store(client, store, worker):
    assert client.post("/v1/jobs", json=BODY).json()["predicted_wait_s"] == 0.0  # a slot is free
    worker.take().answer("Hello")
    mean_ms, samples, _ = store.hget(keys.SERVICE, "demo").split()
    assert (0 <= float(mean_ms) < 4000, samples) == (True, b"1")
    measured(store, mean_ms=1000, samples=20)
    posted = client.post("/v1/jobs", json=BODY).json()
    store.hset(keys.job(posted["id"]), "started", 0)
    turn = worker.take()
    now_ms = int(store.time()[0]) * 1000
    store.hset(keys.job(posted["id"]), "started", now_ms - 11_000)
    turn.succeed()
    mean_ms, samples, _ = store.hget(keys.SERVICE, "demo").split()
    assert (1995 <= float(mean_ms) <= 2300, samples) == (True, b"21")  # a tenth of the way from 1 s to 11 s


def test_wait_is_predicted_from_the_line_and_what_was_measured(client, store, worker):
    worker.report(DEMO_OFFER, in_flight=4)  # no slot is free
    assert client.post("/v1/jobs", json=BODY).json()["predicted_wait_s"] is None
    measured(store, mean_ms=2000)
    posted = client.post("/v1/jobs", json=BODY).json()
    assert (posted["position"], posted["predicted_wait_s"]) == (1, 1.0)  # two ends at 4 slots per 2 s
    assert client.get(f"/v1/jobs/{posted['id']}").json()["predicted_wait_s"] == 1.0
    waits = [job["predicted_wait_s"] for job in client.get("/v1/jobs").json()["data"]]
    assert waits == [1.0, 0.5]


def test_retry_after_of_a_full_line_follows_the_rate(store_settings, store, worker):
    settings = store_settings.model_copy(update={"max_queue_per_model": 2, "max_queue_total": 3})
    with front(settings) as client:
        for remaining in ("1", "0"):
            posted = client.post("/v1/jobs", json=BODY)
            assert (posted.status_code, posted.headers["x-ratelimit-limit-requests"]) == (202, "2")
            assert posted.headers["x-ratelimit-remaining-requests"] == remaining
            assert "x-ratelimit-reset-requests" not in posted.headers  # nothing was measured
        full = client.post("/v1/jobs", json=BODY)
        assert (full.status_code, full.headers["retry-after"]) == (429, "5")  # nothing was measured
        assert full.headers["x-ratelimit-remaining-requests"] == "0"
        measured(store, mean_ms=60_000)
        full = client.post("/v1/jobs", json=BODY)
        assert (full.status_code, full.headers["retry-after"]) == (429, "15")  # one end at 4 slots per minute
        assert (full.json()["depth"], full.json()["limit"], full.json()["model"]) == (2, 2, "demo")
        assert client.post("/v1/chat/completions", json=CHAT).headers["retry-after"] == "15"


# ---- deadlines


def test_deadline_that_cannot_be_met_is_refused_with_the_numbers(client, store, worker):
    worker.report(DEMO_OFFER, in_flight=4)
    measured(store, mean_ms=40_000)
    client.post("/v1/jobs", json=BODY)
    refused = client.post("/v1/jobs", json=BODY | {"deadline": 15})
    problem = refused.json()
    assert (refused.status_code, problem["code"], problem["param"]) == (422, "deadline_cannot_be_met", "deadline")
    assert (problem["ahead"], problem["predicted_wait_s"]) == (1, 20.0)
    assert 14 < problem["deadline_in_s"] <= 15
    assert client.post("/v1/jobs", json=BODY | {"deadline": 15, "priority": "interactive"}).status_code == 202
    assert client.post("/v1/jobs", json=BODY | {"deadline": 60}).status_code == 202


def test_deadline_is_not_refused_on_the_word_of_a_few(client, store, worker):
    worker.report(DEMO_OFFER, in_flight=4)
    measured(store, mean_ms=40_000, samples=2)
    assert client.post("/v1/jobs", json=BODY | {"deadline": 5}).status_code == 202


# ---- repeated requests


def test_repeated_request_gets_the_same_reply(client, worker):
    first = client.post("/v1/jobs", json=BODY, headers=KEY)
    bare = {"Idempotency-Key": KEY["Idempotency-Key"].strip('"')}
    for headers in (KEY, bare):
        again = client.post("/v1/jobs", json=BODY, headers=headers)
        assert (again.status_code, again.headers["location"]) == (202, first.headers["location"])
        assert again.json() == first.json()
    worker.take().answer("Hello")
    done = client.post("/v1/jobs", json=BODY, headers=KEY)
    assert (done.status_code, done.json()["result"]["text"]) == (202, "Hello")
    assert len(client.get("/v1/jobs").json()["data"]) == 1


@pytest.mark.parametrize("change", [{"seed": 5}, {"priority": "batch"}, {"deadline": 60}, {"prompt": "other"}])
def test_same_key_with_another_body_is_refused(client, change):
    client.post("/v1/jobs", json=BODY, headers=KEY)
    other = client.post("/v1/jobs", json=BODY | change, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    chat = client.post("/v1/chat/completions", json=CHAT, headers=KEY)
    assert (chat.status_code, chat.json()["error"]["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize("key", ["", '"open', "two words", "k" * 300])
def test_malformed_key_is_refused(client, key):
    reply = client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": key})
    assert (reply.status_code, reply.json()["param"]) == (400, "Idempotency-Key")
    openai = client.post("/v1/chat/completions", json=CHAT, headers={"Idempotency-Key": key})
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_repeated_chat_streams_the_same_job(client, worker, meanwhile):
    body = CHAT | {"stream": True}
    first = meanwhile(client.post, "/v1/chat/completions", json=body, headers=KEY)
    turn = worker.take()
    turn.say("Hel")
    with client.stream("POST", "/v1/chat/completions", json=body, headers=KEY) as second:
        assert second.headers["x-keepwarm-job"] == turn.attempt.job_id
        lines = second.iter_lines()
        next(line for line in lines if '"content":"Hel"' in line)
        turn.answer("lo")
        assert any('"content":"lo"' in line for line in lines)
    third = client.post("/v1/chat/completions", json=body, headers=KEY)
    assert first.result().text == third.text  # also after the end


def test_job_of_a_keyed_request_outlives_its_connection(client, worker, store):
    with client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}, headers=KEY) as stream:
        turn = worker.take()
        turn.say("Hel")
        next(line for line in stream.iter_lines() if '"content":"Hel"' in line)
    give_up_at = time.monotonic() + PATIENCE_S
    while "keepwarm_open_streams 0.0" not in client.get("/metrics").text:  # the front saw the client leave
        assert time.monotonic() < give_up_at
    assert not store.hexists(keys.job(turn.attempt.job_id), "cancel")
    turn.answer("lo")
    again = client.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=KEY)
    assert '"content":"Hel"' in again.text
    assert again.text.endswith("data: [DONE]\n\n")
