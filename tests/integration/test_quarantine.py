"""Prompts and models that kill what serves them, against a real server: from the loss to the refusal and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tasks.celery_app import create_celery_app
from tasks.controller.rescue import Rescue
from tasks.controller.tick import Controller
from tasks.errors import ModelQuarantined, NotQuarantined, PromptQuarantined
from tasks.fleet import ModelOffer, RunnerReport, RunnerState, WorkerReport
from tasks.generation import GenerationRequest, SamplingParams
from tasks.jobs import JobError, JobId, JobResult, JobState, Priority, WorkerId, new_job_id
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.admission_store import AdmissionStore
from tasks.store.backlog_store import BacklogStore
from tasks.store.batch_store import BatchStore
from tasks.store.connection import Client, connect
from tasks.store.fleet_store import FleetStore
from tasks.store.job_lists import JobLists
from tasks.store.job_store import JobStore
from tasks.store.lease_store import JobIsQuarantined, LeaseStore
from tasks.store.policy_store import PolicyStore
from tasks.store.quarantine_store import QuarantineStore
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.stream_events import Tokens
from tasks.wakeups import Wakeups

pytestmark = pytest.mark.integration

MODEL = "demo"
CRASHED = JobError(code="runner_crashed", message="The runner of 'demo' died (exit code -11).")
STALLED = JobError(code="runner_stalled", message="The runner of 'demo' made no step for 30 s and was killed.")
OFFER = ModelOffer(id=MODEL, context_length=64, slots=4, bytes=1000, load_ms=50)


@dataclass
class Keepwarm:
    """All stores of one server, and a controller on them."""

    client: Client
    settings: StoreSettings

    def __post_init__(self) -> None:
        self.jobs = JobStore(self.client, self.settings)
        self.admissions = AdmissionStore(self.client, self.settings)
        self.lists = JobLists(self.client)
        self.leases = LeaseStore(self.client, self.settings)
        self.writer = TokenWriter(self.client)
        self.fleet = FleetStore(self.client)
        self.quarantine = QuarantineStore(self.client, self.settings)
        rescue = Rescue(
            jobs=self.jobs,
            leases=self.leases,
            fleet=self.fleet,
            backlog_store=BacklogStore(self.client),
            batches=BatchStore(self.client, self.settings),
            quarantine=self.quarantine,
            wakeups=Wakeups(create_celery_app(self.settings)),
            settings=self.settings,
        )
        self.controller = Controller(fleet=self.fleet, policy=PolicyStore(self.client), rescue=rescue)

    def admit(self, prompt: str = "Say", seed: int = 1) -> JobId:
        request = GenerationRequest(model=MODEL, prompt=prompt, sampling=SamplingParams(seed=seed))
        return self.admissions.admit(
            new_job_id(), request, priority=Priority.DEFAULT, deadline_ms=None, idempotency_key=None
        ).job_id

    def claim(self, *job_ids: JobId) -> list[JobId]:
        """Those that could be claimed."""
        return [job_id for job_id in job_ids if self.leases.claim(job_id, MODEL, WorkerId("w1")) is not None]

    def crash(self, *job_ids: JobId) -> None:
        """The runner of these running jobs dies."""
        for job_id in job_ids:
            number = self.jobs.get(job_id).attempt
            self.leases.release(job_id, number, failure=CRASHED, company=len(job_ids) - 1)

    def say(self, job_id: JobId) -> None:
        job = self.jobs.get(job_id)
        self.writer.append([Chunk(job_id, job.attempt, job.last_seq + 1, Tokens("a", (1,)))])

    def break_attempt(self, job_id: JobId, failure: JobError = CRASHED, *, tokens: int = 0) -> bool:
        """Claim, publish, break. True when the job goes on."""
        attempt = self.leases.claim(job_id, MODEL, WorkerId("w1"))
        assert attempt is not None
        for seq in range(attempt.last_seq + 1, attempt.last_seq + 1 + tokens):
            self.writer.append([Chunk(job_id, attempt.number, seq, Tokens("a", (seq,)))])
        return self.leases.release(job_id, attempt.number, failure=failure) is not None

    def lose_worker(self, worker: str, prompt: str = "Say") -> JobId:
        """A worker takes a job and is never heard of again."""
        job_id = self.admit(prompt)
        assert self.leases.claim(job_id, MODEL, WorkerId(worker)) is not None
        self.client.zadd(keys.RUNNING, {job_id: 1})
        self.controller.rescue.sweep()
        return job_id

    def succeed(self) -> None:
        job_id = self.admit("good")
        attempt = self.leases.claim(job_id, MODEL, WorkerId("good"))
        assert attempt is not None
        result = JobResult(text="", finish_reason="stop", usage=None)
        assert self.leases.finish(job_id, attempt.number, JobState.SUCCEEDED, result=result)

    def beat(self, worker: str, *runners: RunnerState, started_ms: int = 0) -> None:
        """A heartbeat of a worker with runners of the model in these states."""
        reports = tuple(
            RunnerReport(pid=2, model=MODEL, state=state, bytes=1000, slots=4, in_flight=0, since_ms=5)
            for state in runners
        )
        self.fleet.heartbeat(
            WorkerReport(
                id=WorkerId(worker), pid=1, host="h", device="cpu", budget_bytes=10_000, used_bytes=0,
                started_ms=started_ms, offers=(OFFER,), runners=reports,
            )
        )  # fmt: skip


@pytest.fixture
def keepwarm(store_settings: StoreSettings) -> Iterator[Keepwarm]:
    client = connect(store_settings)
    yield Keepwarm(client, store_settings)
    client.close()


# ---- prompts


def test_prompt_that_kills_twice_is_quarantined_though_its_client_has_left(keepwarm: Keepwarm) -> None:
    job_id = keepwarm.admit()
    assert keepwarm.break_attempt(job_id)
    keepwarm.claim(job_id)
    keepwarm.jobs.cancel(job_id)
    keepwarm.crash(job_id)
    assert keepwarm.jobs.get(job_id).state is JobState.FAILED
    with pytest.raises(PromptQuarantined):
        keepwarm.admit()


@pytest.mark.parametrize("failures", [(CRASHED, CRASHED), (CRASHED, STALLED)])
def test_prompt_that_kills_twice_fails_at_once_and_is_refused(keepwarm: Keepwarm, failures: tuple) -> None:
    job_id = keepwarm.admit()
    assert keepwarm.break_attempt(job_id, failures[0])
    assert not keepwarm.break_attempt(job_id, failures[1])
    job = keepwarm.jobs.get(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, job.last_error) == (JobState.FAILED, "prompt_quarantined", failures[1])
    assert failures[1].message in job.error.message
    assert [dead.id for dead in keepwarm.lists.dead(10)] == [job_id]
    with pytest.raises(PromptQuarantined, match="keepwarm quarantine lift prompt:") as refused:
        keepwarm.admit(seed=2)  # the seed is no part of it
    assert refused.value.cause == failures[1].code
    keepwarm.admit("Say something else")


def test_quarantine_knows_the_prompt_by_its_digest_alone(keepwarm: Keepwarm) -> None:
    job_id = keepwarm.admit("a secret prompt")
    keepwarm.break_attempt(job_id)
    keepwarm.break_attempt(job_id)
    (entry,) = keepwarm.quarantine.all()
    assert (entry.suspect.model, entry.suspect.jobs, entry.suspect.cause) == (MODEL, (job_id,), CRASHED)
    assert entry.until_ms - entry.since_ms == keepwarm.settings.quarantine_s * 1000
    assert b"secret" not in b"".join(keepwarm.client.hvals(keys.QUARANTINE) + keepwarm.client.keys())


def test_job_that_gets_further_each_time_is_not_to_blame(keepwarm: Keepwarm) -> None:
    job_id = keepwarm.admit()
    assert keepwarm.break_attempt(job_id, tokens=3)
    assert keepwarm.break_attempt(job_id, tokens=1)
    assert keepwarm.quarantine.all() == []
    assert not keepwarm.break_attempt(job_id)  # the second time at the same place, and the third attempt
    error = keepwarm.jobs.get(job_id).error
    assert error is not None and error.code == "prompt_quarantined"


def test_parked_and_otherwise_broken_attempts_do_not_count(keepwarm: Keepwarm) -> None:
    job_id = keepwarm.admit()
    keepwarm.break_attempt(job_id)
    keepwarm.break_attempt(job_id, JobError(code="worker_lost", message=""))
    assert keepwarm.jobs.get(job_id).state is JobState.QUEUED
    assert keepwarm.quarantine.all() == []


def test_same_prompt_that_waits_already_is_not_started(keepwarm: Keepwarm) -> None:
    first, second = keepwarm.admit(), keepwarm.admit()
    keepwarm.break_attempt(first)
    keepwarm.break_attempt(first)
    with pytest.raises(JobIsQuarantined) as caught:
        keepwarm.leases.claim(second, MODEL, WorkerId("w1"))
    assert caught.value.error.code == "prompt_quarantined"
    assert keepwarm.jobs.get(second).attempt == 0


def test_quarantine_ends_by_hand_or_by_time(keepwarm: Keepwarm) -> None:
    job_id = keepwarm.admit()
    keepwarm.break_attempt(job_id)
    keepwarm.break_attempt(job_id)
    (entry,) = keepwarm.quarantine.all()
    with pytest.raises(NotQuarantined):
        keepwarm.quarantine.lift("prompt:")  # too short to mean one
    keepwarm.quarantine.lift(entry.id[:20])
    again = keepwarm.admit()
    with pytest.raises(NotQuarantined):
        keepwarm.quarantine.lift(entry.id)
    keepwarm.break_attempt(again)
    keepwarm.break_attempt(again)
    _, _, suspect = keepwarm.client.hget(keys.QUARANTINE, entry.id).split(b" ", 2)
    keepwarm.client.hset(keys.QUARANTINE, entry.id, b"1 2 " + suspect)  # long over
    assert keepwarm.quarantine.all() == []
    keepwarm.admit()
    assert [over.id for over in keepwarm.quarantine.release_expired()] == [entry.id]
    assert keepwarm.client.hlen(keys.QUARANTINE) == 0


def test_quarantine_can_be_switched_off(store_settings: StoreSettings) -> None:
    keepwarm = Keepwarm(connect(store_settings), store_settings.model_copy(update={"quarantine_s": 0}))
    job_id = keepwarm.admit()
    assert [keepwarm.break_attempt(job_id) for _ in range(3)] == [True, True, False]
    assert keepwarm.jobs.get(job_id).error == CRASHED
    keepwarm.admit()


# ---- prompts in company


@pytest.fixture
def suspects(keepwarm: Keepwarm) -> list[JobId]:
    """Three jobs that lost two runners together."""
    jobs = [keepwarm.admit(prompt) for prompt in "abc"]
    for _ in range(2):
        assert keepwarm.claim(*jobs) == jobs
        keepwarm.crash(*jobs)
    assert keepwarm.quarantine.all() == []
    return jobs


def test_suspects_are_tried_one_at_a_time(keepwarm: Keepwarm, suspects: list[JobId]) -> None:
    assert keepwarm.claim(*suspects) == suspects[:1]
    overdue = [job_id for job_id, _, _ in BacklogStore(keepwarm.client).lost()]
    assert sorted(overdue) == sorted(suspects[1:])  # woken again by the next tick
    keepwarm.say(suspects[0])  # it got further: no longer a suspect
    assert keepwarm.claim(*suspects) == suspects[1:2]


@pytest.mark.parametrize("is_culprit_first", [True, False])
def test_only_the_one_on_trial_is_convicted(keepwarm: Keepwarm, suspects: list[JobId], is_culprit_first: bool) -> None:
    innocent, culprit, waiting = suspects
    fresh = keepwarm.admit("fresh")
    keepwarm.claim(innocent)
    keepwarm.say(innocent)
    assert keepwarm.claim(culprit, waiting, fresh) == [culprit, fresh]
    others = [innocent, fresh]
    keepwarm.crash(*([culprit, *others] if is_culprit_first else [*others, culprit]))
    assert keepwarm.jobs.get(culprit).state is JobState.FAILED
    assert [entry.suspect.jobs for entry in keepwarm.quarantine.all()] == [(culprit,)]
    assert [(keepwarm.jobs.get(job_id).state, keepwarm.jobs.get(job_id).failures) for job_id in others] == [
        (JobState.QUEUED, 2),  # the third loss is not charged
        (JobState.QUEUED, 0),
    ]
    assert keepwarm.claim(waiting, innocent, fresh) == [waiting, innocent, fresh]


def test_suspects_of_a_base_and_its_adapter_are_tried_in_one_stand(keepwarm: Keepwarm, suspects: list[JobId]) -> None:
    request = GenerationRequest(model="tune", prompt="d")
    of_adapter = keepwarm.admissions.admit(
        new_job_id(), request, priority=Priority.DEFAULT, deadline_ms=None, idempotency_key=None
    ).job_id
    claim = keepwarm.leases.claim
    for number in (1, 2):
        assert claim(of_adapter, "tune", WorkerId("w1"), runner_model=MODEL) is not None
        keepwarm.leases.release(of_adapter, number, failure=CRASHED, company=3)
    assert claim(suspects[0], MODEL, WorkerId("w1")) is not None
    assert claim(of_adapter, "tune", WorkerId("w1"), runner_model=MODEL) is None
    keepwarm.say(suspects[0])
    assert claim(of_adapter, "tune", WorkerId("w1"), runner_model=MODEL) is not None


def test_suspect_that_was_cancelled_frees_the_stand(keepwarm: Keepwarm, suspects: list[JobId]) -> None:
    keepwarm.claim(suspects[0])
    keepwarm.leases.finish(suspects[0], 3, JobState.CANCELLED)
    assert keepwarm.claim(*suspects[1:]) == suspects[1:2]


# ---- models


def test_model_that_costs_three_workers_ends_its_jobs_and_leaves(keepwarm: Keepwarm) -> None:
    keepwarm.beat("alive", RunnerState.READY)
    for worker in ("w1", "w2", "w3"):
        keepwarm.lose_worker(worker)
    plan = keepwarm.controller.tick()
    assert plan is not None
    (entry,) = keepwarm.quarantine.all()
    assert (entry.id, entry.suspect.workers) == ("model:demo", ("w1", "w2", "w3"))
    assert [(each.action, each.worker) for each in plan.decisions] == [("evict", "alive"), ("refuse", None)]
    assert plan.placement.workers["alive"].hold == ()
    errors = {job.error.code for job in keepwarm.lists.recent(10).jobs if job.error}
    assert {job.state for job in keepwarm.lists.recent(10).jobs} == {JobState.FAILED}
    assert errors == {"model_quarantined"}
    with pytest.raises(ModelQuarantined, match="3 workers were lost") as refused:
        keepwarm.admit("anything")
    assert 0 < refused.value.retry_after_s <= keepwarm.settings.quarantine_s


def test_lifted_model_starts_with_a_clean_slate(keepwarm: Keepwarm) -> None:
    for worker in ("w1", "w2", "w3"):
        keepwarm.lose_worker(worker)
    keepwarm.controller.tick()
    keepwarm.quarantine.lift("model:demo")
    keepwarm.controller.tick()
    assert keepwarm.quarantine.all() == []
    keepwarm.admit()


def test_one_worker_with_many_jobs_is_one_loss(keepwarm: Keepwarm) -> None:
    for number in range(5):
        keepwarm.lose_worker("w1", prompt=str(number))
    keepwarm.controller.tick()
    assert keepwarm.quarantine.all() == []


def test_success_in_between_speaks_for_the_model(keepwarm: Keepwarm) -> None:
    keepwarm.lose_worker("w1")
    keepwarm.lose_worker("w2")
    keepwarm.succeed()
    keepwarm.lose_worker("w3")
    keepwarm.controller.tick()
    assert keepwarm.quarantine.all() == []


def test_worker_that_vanishes_during_a_load_is_a_loss_too(keepwarm: Keepwarm) -> None:
    for worker in ("w1", "w2", "w3"):
        keepwarm.beat(worker, RunnerState.STARTING)
        keepwarm.client.zadd(keys.WORKERS_SEEN, {worker: 1})
    keepwarm.controller.tick()
    assert [entry.id for entry in keepwarm.quarantine.all()] == ["model:demo"]
