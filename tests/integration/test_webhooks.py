"""Webhooks from the script that ends a job to a receiver: a real store, real sockets, processes that are killed."""

from __future__ import annotations

import base64
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from app.backend import connect_backend
from app.main import create_app
from app.settings import ApiSettings
from app.webhooks.deliverer import Deliverer
from app.webhooks.sending import Sender
from tasks.attachments import Attachments, Webhook
from tasks.batches import BatchCounts, BatchState
from tasks.jobs import JobError, JobId, JobState
from tasks.settings import StoreSettings
from tasks.store import keys, outbox_store
from tasks.store.batch_store import BatchStore
from tasks.store.connection import Client
from tasks.store.job_store import JobStore
from tasks.store.outbox_store import OutboxStore
from tasks.webhooks import Delivered, NotDelivered
from tests.support.front_server import FrontServer
from tests.support.scripted_worker import DEMO_OFFER, ScriptedWorker
from tests.support.stack import DEMO_MODELS, Stack, free_port, wait_until
from tests.support.webhook_receiver import PATIENCE_S, Post, WebhookReceiver

pytestmark = pytest.mark.integration

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
SETTINGS: dict[str, Any] = {"webhook_secret": SECRET, "webhook_allow": ("127.0.0.1",), "max_webhooks": 3}
NOW = (0.0,) * 3  # delays between tries


@pytest.fixture
def worker(store_settings: StoreSettings) -> Iterator[ScriptedWorker]:
    worker = ScriptedWorker(store_settings.model_copy(update={"max_attempts": 1}))
    worker.report(DEMO_OFFER)
    yield worker
    worker.close()


@pytest.fixture
def http(store_settings: StoreSettings, worker: ScriptedWorker) -> Iterator[httpx2.Client]:
    with (
        FrontServer(create_app(ApiSettings(**SETTINGS), connect_backend(store_settings))) as server,
        httpx2.Client(base_url=server.url, timeout=PATIENCE_S) as http,
    ):
        yield http


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


def submit(http: httpx2.Client, url: str, **fields) -> str:
    body = {"model": "demo", "prompt": "A secret prompt", "webhook": {"url": url}} | fields
    response = http.post("/v1/jobs", json=body)
    assert response.status_code == 202, response.text
    return response.json()["id"]


async def deliver(client: Client, **changes) -> None:
    """One turn of a deliverer, to its end."""
    settings = ApiSettings(**SETTINGS | changes)
    async with Sender(settings.webhook_reach, timeout_s=settings.webhook_timeout_s) as sender:
        deliverer = Deliverer(
            outbox=OutboxStore(client, StoreSettings()),
            sender=sender,
            signing_keys=settings.webhook_keys,
            timeout_s=settings.webhook_timeout_s,
            delays_s=NOW,
        )
        await deliverer.turn()
        await deliverer.idle()


def verified(post: Post) -> dict:
    OpenAI(api_key="none").webhooks.verify_signature(post.body.decode(), post.headers, secret=SECRET)
    assert post.headers["webhook-id"] == post.event["id"] == f"msg_{post.event['data']['id']}"
    return post.event


def counts(client: Client) -> dict[str, int]:
    return dict(OutboxStore(client, StoreSettings()).state().counts)


# ---- every end of a job is told


def ends_succeeded(worker: ScriptedWorker, http: httpx2.Client, jobs: JobStore, job_id: JobId) -> None:
    worker.take().answer("Four", " words")


def ends_failed(worker: ScriptedWorker, http: httpx2.Client, jobs: JobStore, job_id: JobId) -> None:
    worker.take().fail("context_length_exceeded", "The prompt 'A secret prompt' is too long.")


def ends_dead(worker: ScriptedWorker, http: httpx2.Client, jobs: JobStore, job_id: JobId) -> None:
    worker.take().break_down("runner_crashed", "The runner died over 'A secret prompt'.")


def ends_cancelled_waiting(worker: ScriptedWorker, http: httpx2.Client, jobs: JobStore, job_id: JobId) -> None:
    assert http.delete(f"/v1/jobs/{job_id}").json()["state"] == "cancelled"


def ends_cancelled_running(worker: ScriptedWorker, http: httpx2.Client, jobs: JobStore, job_id: JobId) -> None:
    turn = worker.take()
    assert http.delete(f"/v1/jobs/{job_id}").json()["state"] == "running"
    worker.finish(turn, JobState.CANCELLED, None, None)


def ends_expired_waiting(worker: ScriptedWorker, http: httpx2.Client, jobs: JobStore, job_id: JobId) -> None:
    jobs.end_waiting(job_id, JobState.EXPIRED, JobError(code="job_expired", message="too late"))


def ends_refused(worker: ScriptedWorker, http: httpx2.Client, jobs: JobStore, job_id: JobId) -> None:
    jobs.end_waiting(job_id, JobState.FAILED, JobError(code="model_load_failed", message="no room"))


@pytest.mark.parametrize(
    ("end", "kind", "error"),
    [
        (ends_succeeded, "job.succeeded", None),
        (ends_failed, "job.failed", "context_length_exceeded"),
        (ends_dead, "job.failed", "runner_crashed"),
        (ends_cancelled_waiting, "job.cancelled", None),
        (ends_cancelled_running, "job.cancelled", None),
        (ends_expired_waiting, "job.expired", "job_expired"),
        (ends_refused, "job.failed", "model_load_failed"),
    ],
)
async def test_every_end_of_a_job_is_told_once(
    end: Callable[..., None],
    kind: str,
    error: str | None,
    worker: ScriptedWorker,
    http: httpx2.Client,
    receiver: WebhookReceiver,
    client: Client,
    store_settings: StoreSettings,
):
    job_id = submit(http, receiver.url, metadata={"ticket": "7"})
    await deliver(client)
    assert receiver.count == 0  # not before the end
    end(worker, http, JobStore(client, store_settings), JobId(job_id))
    await deliver(client)
    post = receiver.next()
    event = verified(post)
    assert post.path == "/hook?token=hush" and post.headers["content-type"] == "application/json"
    assert event["type"] == kind and event["data"]["id"] == job_id and event["data"]["metadata"] == {"ticket": "7"}
    assert (event["data"]["error"] or {}).get("code") == error
    assert event["data"]["usage"] == (
        {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cached_tokens": 3}
        if kind == "job.succeeded"
        else None
    )
    assert b"secret" not in post.body and b"words" not in post.body
    await deliver(client)
    assert receiver.count == 1
    assert counts(client) == {"delivered": 1}
    assert http.get(f"/v1/jobs/{job_id}").json()["webhook"]["delivered"] is True
    assert [key for key in client.keys("kw:outbox*")] == [keys.OUTBOX_COUNTS.encode()]


async def test_end_of_a_batch_is_told_with_its_counts(
    store_settings: StoreSettings, client: Client, receiver: WebhookReceiver
):
    batches = BatchStore(client, store_settings)
    attached = Attachments(metadata={"night": "1"}, webhook=Webhook(url=receiver.url))
    batch = batches.create(endpoint="/v1/chat/completions", input_file_id="file-1", attached=attached)
    epoch = batches.claim(batch.id, "feeder") or 0
    done = BatchCounts(total=3, completed=2, failed=1, input_tokens=9, output_tokens=4)
    for state in (BatchState.IN_PROGRESS, BatchState.FINALIZING):
        batches.write(batch.id, epoch, to=state, counts=done)
    assert OutboxStore(client, StoreSettings()).num_pending() == 0
    for _ in range(2):  # a repeated call, because the reply got lost
        batches.write(batch.id, epoch, to=BatchState.COMPLETED, counts=done, output_file_id="file-out")
    await deliver(client)
    event = verified(receiver.next())
    assert event["type"] == "batch.completed"
    assert event["data"]["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert event["data"]["output_file_id"] == "file-out" and event["data"]["metadata"] == {"night": "1"}
    await deliver(client)
    assert receiver.count == 1


async def test_word_about_a_record_that_is_gone_brings_nothing_back(
    http: httpx2.Client, worker: ScriptedWorker, client: Client, receiver: WebhookReceiver
):
    job_id = submit(http, receiver.url)
    worker.take().answer("x")
    client.delete(keys.job(JobId(job_id)))
    await deliver(client)
    assert verified(receiver.next())["data"]["id"] == job_id
    assert not client.exists(keys.job(JobId(job_id)))


async def test_job_without_a_webhook_leaves_nothing_behind(http: httpx2.Client, worker: ScriptedWorker, client: Client):
    assert http.post("/v1/jobs", json={"model": "demo", "prompt": "x"}).json()["webhook"] is None
    worker.take().answer("y")
    assert client.keys("kw:outbox*") == []


async def test_requeued_job_tells_its_own_end(
    http: httpx2.Client, worker: ScriptedWorker, client: Client, receiver: WebhookReceiver
):
    first = submit(http, receiver.url, metadata={"a": "b"})
    worker.take().break_down("runner_crashed", "gone")
    again = http.post(f"/v1/jobs/{first}/requeue").json()
    assert again["metadata"] == {"a": "b"}
    worker.take().answer("x")
    await deliver(client)
    assert {receiver.next().event["data"]["id"] for _ in range(2)} == {first, again["id"]}


# ---- receivers that fail


async def test_receiver_that_was_down_gets_it_when_it_is_up(
    http: httpx2.Client, worker: ScriptedWorker, client: Client
):
    port = free_port()
    submit(http, f"http://127.0.0.1:{port}/")
    worker.take().answer("x")
    await deliver(client)
    assert counts(client) == {"failed unreachable": 1}
    with WebhookReceiver(port=port) as receiver:
        receiver.answer = lambda number: (503 if number == 1 else 204, {})
        await deliver(client)
        await deliver(client)
        first, second = receiver.next(), receiver.next()
    assert verified(first) == verified(second)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert counts(client) == {"failed unreachable": 1, "failed status_5xx": 1, "delivered": 1}


async def test_tries_are_bounded(
    http: httpx2.Client, worker: ScriptedWorker, client: Client, receiver: WebhookReceiver
):
    receiver.answer = lambda number: (500, {})
    job_id = submit(http, receiver.url)
    worker.take().answer("x")
    for _ in range(len(NOW) + 3):
        assert http.get(f"/v1/jobs/{job_id}").json()["webhook"]["delivered"] in (None, False)
        await deliver(client)
    assert http.get(f"/v1/jobs/{job_id}").json()["webhook"]["delivered"] is False
    assert receiver.count == len(NOW) + 1
    assert counts(client) == {"failed status_5xx": len(NOW), "dead status_5xx": 1}
    shown = http.get(f"/v1/jobs/{job_id}").json()
    assert {name: shown["webhook"][name] for name in ("state", "attempts", "last_status")} == {
        "state": "dead",
        "attempts": len(NOW) + 1,
        "last_status": "status_5xx",
    }
    client.delete(keys.job(JobId(job_id)))  # long gone when three days of tries are over
    (dead,) = http.get("/v1/webhooks/dead").json()["data"]
    assert dead | {"given_up_at": ""} == {
        "id": job_id,
        "object": "dead_webhook",
        "origin": receiver.url.partition("/hook")[0],
        "state": "succeeded",
        "ended_at": shown["finished_at"],
        "given_up_at": "",
        "attempts": len(NOW) + 1,
        "last_status": "status_5xx",
    }
    assert OutboxStore(client, StoreSettings()).num_pending() == 0


@pytest.mark.parametrize(
    ("answer", "count"),
    [((302, {"location": "/elsewhere"}), "failed redirect"), ((410, {}), "dead gone")],
)
async def test_redirect_is_not_followed_and_gone_is_final(
    answer: tuple[int, dict[str, str]],
    count: str,
    http: httpx2.Client,
    worker: ScriptedWorker,
    client: Client,
    receiver: WebhookReceiver,
):
    receiver.answer = lambda number: answer
    submit(http, receiver.url)
    worker.take().answer("x")
    await deliver(client)
    assert receiver.count == 1 and receiver.next().path == "/hook?token=hush"
    assert counts(client) == {count: 1}


async def test_webhooks_that_were_given_up_are_listed_newest_first_for_a_while_and_in_bounded_number(
    http: httpx2.Client, worker: ScriptedWorker, client: Client, receiver: WebhookReceiver, monkeypatch
):
    receiver.answer = lambda number: (410, {})
    monkeypatch.setattr(outbox_store, "MAX_DEAD", 2)
    job_ids = []
    for _ in range(3):
        job_ids.append(submit(http, receiver.url))
        worker.take().answer("x")
        await deliver(client)
    page = http.get("/v1/webhooks/dead", params={"limit": 1}).json()
    assert ([dead["id"] for dead in page["data"]], page["has_more"]) == ([job_ids[2]], True)
    page = http.get("/v1/webhooks/dead").json()
    assert ([dead["id"] for dead in page["data"]], page["has_more"]) == (job_ids[:0:-1], False)
    assert client.hlen(keys.DEAD_WEBHOOK_ENTRIES) == 2
    client.zincrby(keys.DEAD_WEBHOOKS, -StoreSettings().dead_retention_s * 1000, job_ids[1])
    assert [dead["id"] for dead in http.get("/v1/webhooks/dead").json()["data"]] == job_ids[2:]
    assert client.pttl(keys.DEAD_WEBHOOKS) > 0 and client.pttl(keys.DEAD_WEBHOOK_ENTRIES) > 0


async def test_receiver_that_says_nothing_is_left_after_a_while(http: httpx2.Client, worker: ScriptedWorker, client):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        submit(http, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        worker.take().answer("x")
        await deliver(client, webhook_timeout_s=0.2)
    assert counts(client) == {"failed timeout": 1}


async def test_only_one_of_two_deliverers_gets_a_message_and_a_late_word_does_not_count(
    http: httpx2.Client, worker: ScriptedWorker, client: Client, receiver: WebhookReceiver
):
    outbox = OutboxStore(client, StoreSettings())
    submit(http, receiver.url)
    worker.take().answer("x")
    (first,) = outbox.claim(5, 60)
    assert outbox.claim(5, 60) == []
    client.zadd(keys.OUTBOX, {first.id: 0}, xx=True)  # its lease is over
    (second,) = outbox.claim(5, 60)
    assert (first.number, second.number, first.event_id) == (1, 2, second.event_id)
    assert not outbox.given_up(first, "late")
    assert outbox.delivered(second)
    assert counts(client) == {"delivered": 1}


# ---- deliverers that die


def test_deliverer_killed_between_post_and_word_leaves_a_second_try_with_the_same_id(
    http: httpx2.Client,
    worker: ScriptedWorker,
    client: Client,
    receiver: WebhookReceiver,
    store_url: str,
    tmp_path: Path,
):
    job_id = submit(http, receiver.url)
    worker.take().answer("x")
    settings = {
        "KEEPWARM_REDIS_URL": store_url,
        "KEEPWARM_WEBHOOK_SECRET": SECRET,
        "KEEPWARM_WEBHOOK_ALLOW": "127.0.0.1",
        "KEEPWARM_FAILPOINTS": "webhook_posted=kill:1",
    }
    with Stack(tmp_path / "home", DEMO_MODELS, **settings) as stack:
        killed = stack.start_batcher()
        first = receiver.next()
        assert killed.wait(PATIENCE_S) == -signal.SIGKILL
        assert OutboxStore(client, StoreSettings()).num_pending() == 1
        client.zadd(keys.OUTBOX, {job_id: 0}, xx=True)  # its lease is over
        stack.start_batcher()
        second = receiver.next()
        assert first.body == second.body and verified(first) == verified(second)
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        wait_until(lambda: "webhook_delivered" in stack.log("batcher"), "the second one's word", PATIENCE_S)
        assert "hush" not in stack.log("batcher")
    assert OutboxStore(client, StoreSettings()).num_pending() == 0


# ---- addresses


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"webhook": {"url": "http://169.254.169.254/"}}, "webhook.url"),
        ({"webhook": {"url": "http://[::ffff:10.0.0.1]/"}}, "webhook.url"),
        ({"webhook": {"url": "ftp://example.com/"}}, "webhook.url"),
        ({"webhook_url": "http://localhost/"}, "webhook_url"),
        ({"webhook_url": "https://a.example/", "webhook": {"url": "https://a.example/"}}, "webhook_url"),
        ({"webhook": {"url": "https://a.example/", "secret": "whsec_short"}}, "webhook.secret"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, None),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
    ],
)
def test_what_can_not_be_attached_is_refused_at_once(http: httpx2.Client, fields: dict, param: str | None):
    response = http.post("/v1/jobs", json={"model": "demo", "prompt": "x"} | fields)
    assert response.status_code == 400, response.text
    assert param is None or response.json()["param"] == param
    assert "whsec_short" not in response.text


def test_full_outbox_takes_no_further_webhooks(http: httpx2.Client, client: Client):
    client.zadd(keys.OUTBOX, {f"job_{n}": 1 for n in range(SETTINGS["max_webhooks"])})
    response = http.post("/v1/jobs", json={"model": "demo", "prompt": "x", "webhook_url": "https://a.example/"})
    assert response.status_code == 429 and response.json()["code"] == "too_many_webhooks"
    assert http.post("/v1/jobs", json={"model": "demo", "prompt": "x"}).status_code == 202


def test_job_shows_where_it_tells_its_end_without_query_and_secret(http: httpx2.Client):
    webhook = {"url": "https://a.example/in?token=hush", "secret": SECRET}
    job_id = http.post("/v1/jobs", json={"model": "demo", "prompt": "x", "webhook": webhook}).json()["id"]
    shown = http.get(f"/v1/jobs/{job_id}")
    assert shown.json()["webhook"] == {
        "url": "https://a.example/in",
        "delivered": None,
        "state": "pending",
        "attempts": 0,
        "last_status": None,
    }
    assert "hush" not in shown.text and "whsec_" not in shown.text


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every look-up of a name ending in .test gives the next address; the names that were looked up."""
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if not str(host).endswith(".test"):
            return real(host, port, *args, **options)
        looked_up.append(host)
        return real(addresses[min(len(looked_up), len(addresses)) - 1], port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return looked_up


async def test_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, receiver: WebhookReceiver
):
    looked_up = resolving(monkeypatch, "127.0.0.1", "127.0.0.2")  # a name that changes its mind
    async with Sender(ApiSettings(**SETTINGS).webhook_reach, timeout_s=5) as sender:
        target = f"http://rebind.test:{receiver.port}/"
        assert await sender.post(target, b"{}", {}) == Delivered()
        assert receiver.next().headers["host"] == f"rebind.test:{receiver.port}"
        assert looked_up == ["rebind.test"]
        assert await sender.post(target, b"{}", {}) == NotDelivered("address_refused", is_final=True)
    assert receiver.count == 1


@pytest.mark.parametrize("inside", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254"])
async def test_name_of_an_address_inside_is_refused_when_it_is_sent(
    monkeypatch: pytest.MonkeyPatch, receiver: WebhookReceiver, inside: str
):
    resolving(monkeypatch, inside)
    async with Sender(ApiSettings().webhook_reach, timeout_s=5) as sender:
        outcome = await sender.post(f"http://innocent.test:{receiver.port}/", b"{}", {})
    assert outcome == NotDelivered("address_refused", is_final=True)
    assert receiver.count == 0


async def test_nothing_of_one_receiver_is_kept_for_the_next(receiver: WebhookReceiver):
    receiver.answer = lambda number: (200, {"set-cookie": "session=hush"})
    async with Sender(ApiSettings(**SETTINGS).webhook_reach, timeout_s=5) as sender:
        for _ in range(2):
            assert await sender.post(receiver.url, b"{}", {}) == Delivered()
            assert "cookie" not in receiver.next().headers


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, receiver: WebhookReceiver):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    async with Sender(ApiSettings(**SETTINGS).webhook_reach, timeout_s=5) as sender:
        assert await sender.post(receiver.url, b"{}", {}) == Delivered()
