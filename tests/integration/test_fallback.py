"""Jobs of a model that can't be served, with a fallback that can: real stores and a controller on them."""

from __future__ import annotations

import pytest

from tasks.celery_app import create_celery_app
from tasks.controller.rescue import Rescue
from tasks.controller.tick import Controller
from tasks.fleet import ModelOffer, WorkerReport
from tasks.generation import GenerationRequest
from tasks.jobs import JobId, JobState, Priority, WorkerId, new_job_id
from tasks.settings import StoreSettings
from tasks.store.admission_store import AdmissionStore
from tasks.store.backlog_store import BacklogStore
from tasks.store.batch_store import BatchStore
from tasks.store.connection import connect
from tasks.store.fleet_store import FleetStore
from tasks.store.job_store import JobStore
from tasks.store.lease_store import LeaseStore
from tasks.store.policy_store import PolicyStore
from tasks.store.quarantine_store import QuarantineStore
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.stream_events import Tokens
from tasks.wakeups import Wakeups

pytestmark = pytest.mark.integration

BROKEN = ModelOffer(
    id="broken", context_length=64, slots=4, bytes=1000, load_ms=50, failure="no tensor data", fallback="good"
)
GOOD = ModelOffer(id="good", context_length=64, slots=4, bytes=1000, load_ms=50)


def test_jobs_go_to_the_fallback_and_one_that_has_begun_is_told_why_it_ends(store_settings: StoreSettings) -> None:
    client = connect(store_settings)
    jobs, leases, fleet = JobStore(client, store_settings), LeaseStore(client, store_settings), FleetStore(client)
    admissions, wakeups = AdmissionStore(client, store_settings), Wakeups(create_celery_app(store_settings))
    rescue = Rescue(
        jobs=jobs,
        leases=leases,
        fleet=fleet,
        backlog_store=BacklogStore(client),
        batches=BatchStore(client, store_settings),
        quarantine=QuarantineStore(client, store_settings),
        wakeups=wakeups,
        settings=store_settings,
    )
    fleet.heartbeat(
        WorkerReport(
            id=WorkerId("w1"),
            pid=1,
            host="h",
            device="cpu",
            budget_bytes=5000,
            used_bytes=0,
            started_ms=0,
            offers=(BROKEN, GOOD),
        )
    )

    def admit() -> JobId:
        request, job_id = GenerationRequest(model="broken", prompt="Say"), new_job_id()
        wakeup = wakeups.envelope(job_id, "broken", Priority.DEFAULT)
        return admissions.admit(
            job_id, request, priority=Priority.DEFAULT, deadline_ms=None, idempotency_key=None, wakeup=wakeup
        ).job_id

    begun = admit()
    attempt = leases.claim(begun, "broken", WorkerId("w1"))
    assert attempt is not None
    TokenWriter(client).append([Chunk(begun, attempt.number, 1, Tokens("a", (1,)))])
    leases.release(begun, attempt.number, failure=None)  # parked, and then its model's file went bad
    fresh = admit()
    controller = Controller(fleet=fleet, policy=PolicyStore(client), rescue=rescue)
    controller.tick()
    assert (jobs.get(fresh).state, jobs.get(fresh).model) == (JobState.QUEUED, "good")
    ended = jobs.get(begun)
    assert (ended.state, ended.model) == (JobState.FAILED, "broken")
    assert ended.error is not None
    assert (ended.error.code, "no tensor data" in ended.error.message) == ("model_load_failed", True)
    controller.tick()
    assert client.keys("model.*") == [b"model.good\x06\x163"]  # nobody pops what woke jobs of the broken model
