"""The wake-up that admission pushes is the one that Celery would have sent; the doorbell is none at all."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from kombu import Consumer, Queue  # type: ignore[attr-defined]

from tasks.celery_app import create_celery_app
from tasks.generation import GenerationRequest
from tasks.jobs import JobId, Priority, WorkerId, new_job_id
from tasks.routing import worker_queue
from tasks.settings import StoreSettings
from tasks.store.admission_store import AdmissionStore
from tasks.store.connection import connect
from tasks.store.fleet_store import FleetStore
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
