"""The wake-up that admission pushes is the one that Celery would have sent; the doorbell is none at all."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from kombu import Consumer, Queue  # type: ignore[attr-defined]

from tasks.celery_app import create_celery_app
from tasks.generation import GenerationRequest
from tasks.jobs import JobError, JobId, JobState, Priority, WorkerId, new_job_id
from tasks.routing import worker_queue
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.admission_store import AdmissionStore
from tasks.store.backlog_store import BacklogStore
from tasks.store.connection import Client, connect
from tasks.store.fleet_store import FleetStore
from tasks.store.job_store import JobStore
from tasks.wakeups import Wakeups


@pytest.fixture
def wakeups(store_settings: StoreSettings) -> Wakeups:
    return Wakeups(create_celery_app(store_settings))


def ids_of(message: dict[str, Any]) -> list[str]:
    return [
        message["headers"]["id"],
        message["headers"]["root_id"],
        message["properties"]["correlation_id"],
        message["properties"]["delivery_tag"],
    ]


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(message)
    for each in ids_of(message):
        text = text.replace(each, "?")
    decoded: dict[str, Any] = json.loads(text)
    return decoded | {"body": json.loads(base64.b64decode(message["body"]))}


@pytest.mark.parametrize("priority", Priority)
def test_envelope_is_what_celery_sends(store_settings: StoreSettings, wakeups: Wakeups, priority: Priority) -> None:
    job_id = new_job_id()
    wakeups.envelope(new_job_id(), "m", priority)
    envelope = wakeups.envelope(job_id, "m", priority)
    assert envelope is not None
    client = connect(store_settings)
    assert client.keys("model.m*") == []  # wording it sent nothing
    wakeups.wake(job_id, "m", priority)
    sent = json.loads(client.lpop(envelope.list_key))
    assert without_ids(json.loads(envelope.message)) == without_ids(sent)


def test_every_envelope_has_ids_of_its_own(wakeups: Wakeups) -> None:
    job_ids = [new_job_id() for _ in range(3)]
    envelopes = [wakeups.envelope(job_id, "m", Priority.DEFAULT) for job_id in job_ids]
    messages = [json.loads(envelope.message) for envelope in envelopes if envelope is not None]
    assert [json.loads(base64.b64decode(message["body"]))[0] for message in messages] == [[each] for each in job_ids]
    assert len({each for message in messages for each in ids_of(message)}) == 6  # task and delivery of each


def test_admission_pushes_the_wakeup_once_and_only_for_a_new_job(
    store_settings: StoreSettings, wakeups: Wakeups
) -> None:
    client = connect(store_settings)
    admissions = AdmissionStore(client, store_settings)
    request = GenerationRequest(model="m", prompt="x")

    def admit(job_id: JobId) -> bool:
        return admissions.admit(
            job_id,
            request,
            priority=Priority.DEFAULT,
            deadline_ms=None,
            idempotency_key="k",
            wakeup=wakeups.envelope(job_id, "m", Priority.DEFAULT),
        ).is_new

    first, second = new_job_id(), new_job_id()
    assert [admit(first), admit(first), admit(second)] == [True, True, False]  # new; its call sent again; attached
    (list_key,) = client.keys("model.m*")
    (message,) = client.lrange(list_key, 0, -1)
    assert first in base64.b64decode(json.loads(message)["body"]).decode()


def test_doorbell_ends_a_pop_and_reaches_no_consumer(store_settings: StoreSettings) -> None:
    worker_id, client, heard = WorkerId("w1"), connect(store_settings), []
    with create_celery_app(store_settings).connection() as connection:
        queue = Queue(worker_queue(worker_id), no_declare=True)  # type: ignore[no-untyped-call]
        consumer: Any = Consumer(connection, [queue], [lambda *message: heard.append(message)])  # type: ignore[no-untyped-call]
        with consumer:
            FleetStore(client).ring(worker_id)
            connection.drain_events(timeout=30)  # raises when nothing came
    assert heard == []
    assert client.llen(worker_queue(worker_id)) == 0


def test_nothing_of_a_workers_queue_outlives_it(store_settings: StoreSettings, client: Client) -> None:
    worker_id, celery_app = WorkerId("w1"), create_celery_app(store_settings)
    with celery_app.connection() as connection:
        celery_app.amqp.queues[worker_queue(worker_id)].bind(connection.channel()).declare()
    assert client.keys("*w1*") != []
    FleetStore(client).forget_worker(worker_id)
    assert client.keys("*w1*") == []


# ---- wake-ups of jobs that do not wait any more, where no worker pops them

REFUSED = JobError(code="model_load_failed", message="It can't be loaded.")


def admit(admissions: AdmissionStore, wakeups: Wakeups, priority: Priority = Priority.DEFAULT) -> JobId:
    job_id = new_job_id()
    return admissions.admit(
        job_id,
        GenerationRequest(model="m", prompt="x"),
        priority=priority,
        deadline_ms=None,
        idempotency_key=None,
        wakeup=wakeups.envelope(job_id, "m", priority),
    ).job_id


def woken(client: Client, list_key: str) -> list[JobId]:
    """In the order in which workers pop."""
    messages = reversed(client.lrange(list_key, 0, -1))
    return [JobId(json.loads(base64.b64decode(json.loads(message)["body"]))[0][0]) for message in messages]


def test_useless_wakeups_go_when_nobody_waits_for_the_model(
    client: Client, admissions: AdmissionStore, jobs: JobStore, wakeups: Wakeups
) -> None:
    backlog = BacklogStore(client)
    ended = [admit(admissions, wakeups, priority) for priority in Priority]
    handed_over = admit(admissions, wakeups)
    for job_id in ended:
        jobs.end_waiting(job_id, JobState.FAILED, REFUSED)
    jobs.hand_over(handed_over, "m", "fallback")
    assert backlog.lost() == []
    assert client.keys("model.m*") == []
    assert client.smembers(keys.WAITING_MODELS) == {b"fallback"}
    again = admit(admissions, wakeups)  # the next one is seen and woken as ever
    assert backlog.lost() == []
    assert woken(client, "model.m\x06\x163") == [again]
    assert [queue.model for queue in FleetStore(client).queues()] == ["fallback", "m"]


def test_useless_wakeups_do_not_pile_up_while_jobs_keep_coming(
    client: Client, admissions: AdmissionStore, jobs: JobStore, wakeups: Wakeups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.backlog_store.USELESS_WAKEUPS", 2)
    backlog, waiting, lengths = BacklogStore(client), [admit(admissions, wakeups)], []
    wakeups.wake(waiting[0], "m", Priority.DEFAULT)  # a second time
    client.lpush("model.m", "{}")  # whatever that is
    admit(admissions, wakeups, Priority.INTERACTIVE)
    urgent = client.lrange("model.m", 0, -1)
    for _ in range(20):
        jobs.cancel(admit(admissions, wakeups))
        assert backlog.lost() == []
        lengths.append(client.llen("model.m") + client.llen("model.m\x06\x163"))
    assert max(lengths) <= 2 * (2 + 2 + 1)
    waiting.append(admit(admissions, wakeups))
    left = woken(client, "model.m\x06\x163")
    assert [job_id for job_id in left if jobs.get(job_id).state is JobState.QUEUED] == waiting
    assert client.lrange("model.m", 0, -1) == urgent


def test_line_of_a_busy_model_keeps_its_wakeups(
    client: Client, admissions: AdmissionStore, jobs: JobStore, wakeups: Wakeups
) -> None:
    sent = [admit(admissions, wakeups) for _ in range(5)]
    jobs.cancel(sent[1])
    assert BacklogStore(client).lost() == []
    assert woken(client, "model.m\x06\x163") == sent
