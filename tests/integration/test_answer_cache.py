"""Cached answers and shared jobs over real HTTP on a real store, with a scripted worker behind it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx2
import msgspec
import pytest

from app.backend import connect_backend
from app.main import create_app
from app.settings import ApiSettings
from tasks.fleet import CachePolicy
from tasks.generation import TokenLogprob
from tasks.jobs import JobId
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.answer_store import AnswerStore
from tasks.store.connection import Client, connect
from tasks.store.job_store import JobStore
from tasks.stream_events import Reset
from tests.support.front_server import FrontServer
from tests.support.scripted_worker import DEMO_OFFER, PATIENCE_S, ScriptedWorker

pytestmark = pytest.mark.integration

POLICY = CachePolicy(ttl_s=60, max_bytes=4096)
OFFER = msgspec.structs.replace(DEMO_OFFER, fingerprint="f1", cache=POLICY)
CHAT = "/v1/chat/completions"
BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
CACHE = "x-keepwarm-cache"


@pytest.fixture
def store(store_settings: StoreSettings) -> Client:
    return connect(store_settings)


@pytest.fixture
def worker(store_settings: StoreSettings) -> Iterator[ScriptedWorker]:
    worker = ScriptedWorker(store_settings)
    worker.fingerprint = "f1"
    worker.report(OFFER)
    yield worker
    worker.close()


@pytest.fixture
def client(store_settings: StoreSettings, worker: ScriptedWorker) -> Iterator[httpx2.Client]:
    settings = ApiSettings(hold_back_s=0.05)
    app = create_app(settings, connect_backend(store_settings))
    with FrontServer(app) as server, httpx2.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def text_of(reply: httpx2.Response) -> str:
    assert reply.status_code == 200, reply.text
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return reply.json()["choices"][0]["message"]["content"]
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Asks the store again and again: what happens in the front calls nobody back."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {PATIENCE_S} s: {what}"


def await_clients(store: Client, job_id: JobId, num_clients: int) -> None:
    eventually(lambda: store.hget(keys.job(job_id), "clients") == b"%d" % num_clients, f"{num_clients} clients")


def test_an_equal_request_gets_the_same_text_whole_and_streamed(client, worker, meanwhile, store):
    first = meanwhile(client.post, CHAT, json=BODY)
    worker.take().answer("Hel", "lo")
    assert (text_of(first.result()), first.result().headers[CACHE]) == ("Hello", "miss")
    again = client.post(CHAT, json=BODY | {"user": "somebody", "seed": 9, "metadata": {"a": "b"}})
    streamed = client.post(CHAT, json=BODY | {"stream": True, "stream_options": {"include_usage": True}})
    for reply in (again, streamed):
        assert (text_of(reply), reply.headers[CACHE], "x-keepwarm-job" in reply.headers) == ("Hello", "hit", False)
    assert len({reply.json()["id"] for reply in (first.result(), again)}) == 2
    usage = again.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 2)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 7}
    counts = AnswerStore(store).counts()
    assert {outcome.value: count for (outcome, _), count in counts.requests.items()} == {"miss": 1, "hit": 2}
    assert (counts.answers, counts.bytes > 0) == (1, True)
    metrics = client.get("/metrics").text
    assert 'keepwarm_cache_requests_total{model_name="demo",outcome="hit"} 2.0' in metrics


def test_log_probabilities_come_from_the_cache_too(client, worker, meanwhile):
    body = BODY | {"logprobs": True}
    first = meanwhile(client.post, CHAT, json=body)
    turn = worker.take()
    turn.say("é", [TokenLogprob("é", -0.25)])
    turn.succeed()
    again = client.post(CHAT, json=body)
    assert again.headers[CACHE] == "hit"
    assert again.json()["choices"] == first.result().json()["choices"]


def test_requests_that_may_differ_are_not_cached(client, worker, meanwhile):
    for _ in range(2):
        reply = meanwhile(client.post, CHAT, json=BODY | {"temperature": 1})
        worker.take().answer("Hello")
        assert CACHE not in reply.result().headers


@pytest.mark.parametrize("is_stream", [False, True])
def test_twins_share_one_job(client, worker, meanwhile, store, is_stream):
    first = meanwhile(client.post, CHAT, json=BODY)
    turn = worker.take()
    turn.say("Hel")
    twin = meanwhile(client.post, CHAT, json=BODY | {"stream": is_stream})
    await_clients(store, turn.attempt.job_id, 2)
    turn.answer("lo")
    assert [text_of(each.result()) for each in (first, twin)] == ["Hello", "Hello"]
    assert [each.result().headers[CACHE] for each in (first, twin)] == ["miss", "shared"]
    assert "x-keepwarm-job" not in twin.result().headers
    assert turn.attempt.job_id.removeprefix("job_") not in twin.result().text


def test_the_job_of_twins_ends_with_the_last_client(client, worker, meanwhile, store, store_settings):
    with client.stream("POST", CHAT, json=BODY | {"stream": True}) as first:
        turn = worker.take()
        turn.say("Hel")
        with client.stream("POST", CHAT, json=BODY | {"stream": True}) as twin:
            await_clients(store, turn.attempt.job_id, 2)
            assert (first.headers[CACHE], twin.headers[CACHE]) == ("miss", "shared")
            first.close()
            await_clients(store, turn.attempt.job_id, 1)
            assert not JobStore(store, store_settings).get(turn.attempt.job_id).cancel_requested
            twin.close()
            assert worker.await_cancel() == turn.attempt.job_id
    fresh = meanwhile(client.post, CHAT, json=BODY)  # that job is on its way out: nobody may follow it
    worker.take().answer("Hello")
    assert (text_of(fresh.result()), fresh.result().headers[CACHE]) == ("Hello", "miss")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_twin_computes_itself_when_the_job_that_it_followed_fails(client, worker, meanwhile, store, is_stream):
    first = meanwhile(client.post, CHAT, json=BODY)
    turn = worker.take()
    turn.say("Hel")
    twin = meanwhile(client.post, CHAT, json=BODY | {"stream": is_stream})
    await_clients(store, turn.attempt.job_id, 2)
    turn.fail("runner_crashed", "It broke.")
    second = worker.take()
    assert second.attempt.job_id != turn.attempt.job_id
    second.answer("He", "llo")
    assert first.result().status_code == 500
    assert text_of(twin.result()) == "Hello"


def test_a_twin_computes_itself_when_somebody_cancels_the_job(client, worker, meanwhile, store):
    first = meanwhile(client.post, CHAT, json=BODY)
    (waiting,) = _waiting(store)
    twin = meanwhile(client.post, CHAT, json=BODY)
    await_clients(store, waiting, 2)
    assert client.delete(f"/v1/jobs/{waiting}").json()["state"] == "cancelled"
    eventually(lambda: bool(_waiting(store)), "the twin has a job of its own")
    worker.drop_wakeup("demo")  # of the job that was cancelled
    worker.take().answer("Hello")
    assert (first.result().status_code, text_of(twin.result())) == (409, "Hello")


def _waiting(store: Client) -> list[JobId]:
    eventually(lambda: bool(store.zcard(keys.waiting("demo"))), "a job waits")
    return [JobId(job_id.decode()) for job_id in store.zrange(keys.waiting("demo"), 0, -1)]


def test_an_urgent_twin_does_not_wait_behind_a_batch_job(client, worker, meanwhile, store):
    first = meanwhile(client.post, CHAT, json=BODY | {"priority": "batch"})
    job_id = _waiting(store)[0]
    urgent = meanwhile(client.post, CHAT, json=BODY | {"priority": "interactive"})
    eventually(lambda: len(_waiting(store)) == 2, "both wait")
    turn = worker.take()
    assert turn.attempt.job_id != job_id
    turn.answer("Hello")
    worker.take().answer("Hello")
    assert [each.result().headers[CACHE] for each in (first, urgent)] == ["miss", "miss"]


def test_an_urgent_twin_does_not_follow_batch_work_that_gives_way(client, worker, meanwhile):
    first = meanwhile(client.post, CHAT, json=BODY | {"priority": "batch"})
    turn = worker.take()
    turn.say("Hel")
    urgent = meanwhile(client.post, CHAT, json=BODY | {"priority": "default"})
    worker.take().answer("Hello")
    assert (text_of(urgent.result()), urgent.result().headers[CACHE]) == ("Hello", "miss")
    turn.answer("lo")
    assert text_of(first.result()) == "Hello"


def test_a_replaced_file_never_answers_from_the_old_one(client, worker, meanwhile):
    first = meanwhile(client.post, CHAT, json=BODY)
    turn = worker.take()
    turn.answer("Hello")
    first.result()
    worker.report(msgspec.structs.replace(OFFER, fingerprint="f2", description="the new file"))
    eventually(lambda: "the new file" in client.get("/v1/models").text, "the front knows the new file")
    late = meanwhile(client.post, CHAT, json=BODY)
    worker.take().answer("Bonjour")  # by a runner that still holds the old file, as its fingerprint says
    assert (text_of(late.result()), late.result().headers[CACHE]) == ("Bonjour", "miss")
    worker.fingerprint = "f2"
    again = meanwhile(client.post, CHAT, json=BODY)
    worker.take().answer("Hallo")
    assert (text_of(again.result()), again.result().headers[CACHE]) == ("Hallo", "miss")
    assert text_of(client.post(CHAT, json=BODY)) == "Hallo"


def test_answers_end_with_their_time(client, worker, meanwhile, store):
    meanwhile(client.post, CHAT, json=BODY)
    worker.take().answer("Hello")
    (key,) = store.scan_iter(keys.answer("*"))
    assert 55_000 < store.pttl(key) <= 60_000
    store.pexpire(key, 1)
    eventually(lambda: not store.exists(key), "the answer is gone")
    store.zadd(keys.ANSWERS_EXPIRY, {key.decode().rpartition(":")[2]: 1})
    again = meanwhile(client.post, CHAT, json=BODY)
    worker.take().answer("Hello")
    assert again.result().headers[CACHE] == "miss"
    assert AnswerStore(store).counts().answers == 1


def test_answers_that_were_not_used_for_longest_make_room(store_settings, store, worker, meanwhile):
    small = store_settings.model_copy(update={"cache_bytes": 1500})  # two answers
    worker.close()
    worker = ScriptedWorker(small)
    worker.fingerprint = "f1"
    with FrontServer(create_app(ApiSettings(), connect_backend(small))) as server:
        client = httpx2.Client(base_url=server.url, timeout=20)

        def ask(seed: int) -> Future:
            return meanwhile(client.post, CHAT, json=BODY | {"temperature": 1, "seed": seed})

        for seed in (1, 2):
            reply = ask(seed)
            worker.take().answer("Hello")
            reply.result()
        assert ask(1).result().headers[CACHE] == "hit"
        reply = ask(3)
        worker.take().answer("Hello")
        reply.result()
        assert [ask(seed).result().headers[CACHE] for seed in (1, 3)] == ["hit", "hit"]
        reply = ask(2)
        worker.take().answer("Hello")
        assert reply.result().headers[CACHE] == "miss"
        counts = AnswerStore(store).counts()
        assert (counts.answers, counts.evicted, counts.bytes <= 1500) == (2, 2, True)
        long = ask(4)
        worker.take().answer("x" * 1500)
        long.result()
        assert AnswerStore(store).counts().answers == 2  # larger than the whole cache: nothing made room for it


def test_what_is_no_whole_answer_of_this_model_is_not_kept(client, worker, meanwhile, store):
    failed = meanwhile(client.post, CHAT, json=BODY)
    worker.take().fail("grammar_failed", "No.")
    failed.result()
    moved = meanwhile(client.post, CHAT, json=BODY)
    _waiting(store)
    worker.hand_over("demo", "other")
    worker.take("other").answer("I am another")
    moved.result()
    large = meanwhile(client.post, CHAT, json=BODY)
    worker.take().answer("x" * POLICY.max_bytes)
    large.result()
    assert (AnswerStore(store).counts().answers, list(store.scan_iter(keys.answer("*")))) == (0, [])


def test_jobs_that_the_cache_answers_are_jobs_like_others(client, worker, meanwhile):
    posted = client.post("/v1/jobs", json=BODY)
    worker.take().answer("Hel", "lo")
    hit = client.post("/v1/jobs", json=BODY | {"deadline": 60, "metadata": {"a": "b"}})
    assert [each.headers[CACHE] for each in (posted, hit)] == ["miss", "hit"]
    job, events = (client.get(hit.headers["location"] + end) for end in ("", "/events"))
    assert (hit.status_code, job.json()["state"], job.json()["result"]["text"]) == (202, "succeeded", "Hello")
    assert job.json()["id"] != posted.json()["id"]
    assert (job.json()["result"]["usage"]["cached_tokens"], job.json()["metadata"]) == (7, {"a": "b"})
    assert [line for line in events.text.split("\n") if line.startswith("id: ")] == ["id: 1", "id: 2", "id: 3"]
    assert job.json()["id"] in {each["id"] for each in client.get("/v1/jobs").json()["data"]}


def test_a_kept_answer_is_in_time_whatever_stands_in_the_line(client, worker, store):
    posted = client.post("/v1/jobs", json=BODY)
    worker.take().answer("Hello")
    line = [client.post("/v1/jobs", json=BODY | {"messages": [{"role": "user", "content": f"{n}"}]}) for n in range(20)]
    store.hset(keys.SERVICE, "demo", f"60000 10 {store.time()[0] * 1000}")
    other = BODY | {"messages": [{"role": "user", "content": "Other"}], "deadline": 1}
    eventually(lambda: client.post("/v1/jobs", json=other).status_code == 422, "no new job could be in time")
    hit = client.post("/v1/jobs", json=BODY | {"deadline": 1})
    assert {each.status_code for each in (posted, *line, hit)} == {202}
    assert (hit.headers[CACHE], hit.json()["state"]) == ("hit", "succeeded")


def test_a_job_is_never_somebody_elses(client, worker):
    """It has an id of its own, and its client may cancel it: it shares only what is finished."""
    posted = [client.post("/v1/jobs", json=BODY) for _ in range(2)]
    assert [each.headers[CACHE] for each in posted] == ["miss", "miss"]
    assert len({each.json()["id"] for each in posted}) == 2


def test_a_client_that_follows_a_native_job_leaves_it_alone(client, worker, meanwhile, store, store_settings):
    posted = client.post("/v1/jobs", json=BODY)
    turn = worker.take()
    turn.say("Hel")
    with client.stream("POST", CHAT, json=BODY | {"stream": True}) as twin:
        assert twin.headers[CACHE] == "shared"
    turn.answer("lo")
    assert client.get(posted.headers["location"]).json()["result"]["text"] == "Hello"
    assert not JobStore(store, store_settings).get(turn.attempt.job_id).cancel_requested


def test_an_idempotency_key_leads_to_the_job_that_the_cache_answered(client, worker, meanwhile):
    first = meanwhile(client.post, CHAT, json=BODY)
    worker.take().answer("Hello")
    first.result()
    headers = {"Idempotency-Key": "k"}
    hit, again = (client.post(CHAT, json=BODY, headers=headers) for _ in range(2))
    assert hit.headers[CACHE] == "hit"
    assert hit.headers["x-keepwarm-job"] == again.headers["x-keepwarm-job"]
    assert (text_of(hit), text_of(again)) == ("Hello", "Hello")
    assert client.post(CHAT, json=BODY | {"max_tokens": 5}, headers=headers).status_code == 422


def test_equal_choices_are_computed_once(client, worker, meanwhile):
    reply = meanwhile(client.post, CHAT, json=BODY | {"n": 3})
    worker.take().answer("Hello")
    assert [choice["message"]["content"] for choice in reply.result().json()["choices"]] == ["Hello"] * 3
    assert reply.result().headers[CACHE] == "miss"
    assert client.post(CHAT, json=BODY | {"n": 2}).headers[CACHE] == "hit"


def test_an_answer_that_started_over_is_kept_without_its_void_part(client, worker, meanwhile):
    first = meanwhile(client.post, CHAT, json=BODY)
    turn = worker.take()
    turn.say("void")
    turn.publish(Reset(2, "why"))
    turn.text = ""
    turn.answer("Hello")
    assert text_of(first.result()) == "Hello"
    assert text_of(client.post(CHAT, json=BODY | {"stream": True})) == "Hello"
