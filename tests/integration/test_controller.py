"""The controller on a real store: what it observes, what it remembers over a change of leaders, what it hands over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import msgspec
import pytest

from tasks.celery_app import create_celery_app
from tasks.controller.decisions import Action, Code
from tasks.controller.policy_state import PolicyState, Rate
from tasks.controller.rescue import Rescue
from tasks.controller.tick import Controller
from tasks.fleet import ClassBacklog, ModelOffer, WorkerReport
from tasks.generation import GenerationRequest, SamplingParams
from tasks.jobs import JobId, JobState, Priority, WorkerId, new_job_id
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.admission_store import AdmissionStore
from tasks.store.backlog_store import BacklogStore
from tasks.store.batch_store import BatchStore
from tasks.store.connection import Client, connect
from tasks.store.fleet_store import FleetStore
from tasks.store.job_store import JobStore
from tasks.store.lease_store import LeaseStore
from tasks.store.policy_store import PolicyStore
from tasks.store.quarantine_store import QuarantineStore
from tasks.wakeups import Wakeups

pytestmark = pytest.mark.integration


def offer(model: str, **fields: object) -> ModelOffer:
    return ModelOffer(id=model, context_length=64, slots=4, bytes=1000, load_ms=50, **fields)  # type: ignore[arg-type]


@dataclass
class Store:
    client: Client
    settings: StoreSettings

    def __post_init__(self) -> None:
        self.jobs = JobStore(self.client, self.settings)
        self.admissions = AdmissionStore(self.client, self.settings)
        self.leases = LeaseStore(self.client, self.settings)
        self.fleet = FleetStore(self.client)
        self.policy = PolicyStore(self.client)

    def controller(self, name: str) -> Controller:
        rescue = Rescue(
            jobs=self.jobs,
            leases=self.leases,
            fleet=self.fleet,
            backlog_store=BacklogStore(self.client),
            quarantine=QuarantineStore(self.client, self.settings),
            wakeups=Wakeups(create_celery_app(self.settings)),
            batches=BatchStore(self.client, self.settings),
            settings=self.settings,
        )
        return Controller(fleet=FleetStore(self.client), policy=self.policy, rescue=rescue, id=name)

    def admit(self, model: str, priority: Priority = Priority.DEFAULT) -> JobId:
        request = GenerationRequest(model=model, prompt="Say", sampling=SamplingParams(seed=1))
        return self.admissions.admit(
            new_job_id(), request, priority=priority, deadline_ms=None, idempotency_key=None
        ).job_id

    def beat(self, *offers: ModelOffer) -> None:
        self.fleet.heartbeat(
            WorkerReport(
                id=WorkerId("w"), pid=1, host="h", device="cpu", budget_bytes=1500, used_bytes=0, started_ms=0,
                offers=offers,
            )
        )  # fmt: skip


@pytest.fixture
def store(store_settings: StoreSettings) -> Iterator[Store]:
    client = connect(store_settings)
    yield Store(client, store_settings)
    client.close()


def test_queues_tell_depth_and_age_per_priority(store: Store) -> None:
    for priority in (Priority.BATCH, Priority.INTERACTIVE, Priority.BATCH):
        store.admit("a", priority)
    (report,) = store.fleet.queues()
    assert [(each.priority, each.depth) for each in report.classes] == [(0, 1), (6, 2)]
    assert report.depth == 3
    assert all(isinstance(each, ClassBacklog) and 0 <= each.oldest_age_ms < 60_000 for each in report.classes)


def test_arrivals_are_counted_per_model_and_priority_and_taken_once(store: Store) -> None:
    for priority in (Priority.DEFAULT, Priority.DEFAULT, Priority.BATCH):
        store.admit("a", priority)
    assert store.policy.take_arrivals() == {("a", 3): 2, ("a", 6): 1}
    assert store.policy.take_arrivals() == {}


def test_what_has_not_changed_is_the_same_object(store: Store) -> None:
    store.beat(offer("a"))
    store.admit("a")
    store.controller("c1").tick()
    first, again = store.fleet.fleet(), store.fleet.fleet()
    assert first.workers[0] is again.workers[0]
    assert store.fleet.placement() is store.fleet.placement()


def test_one_look_tells_which_sweeps_have_work(store: Store) -> None:
    backlog = BacklogStore(store.client)

    def due() -> set[str]:
        look = asdict(backlog.due())
        return {name for name, is_due in look.items() if is_due is True}

    store.beat(offer("a"))
    later_ms = store.fleet.now_ms() + 60_000
    for index in (keys.RUNNING, keys.DEADLINES, keys.OPEN_BATCHES):
        store.client.zadd(index, {"x": later_ms})
    assert due() == set()
    for index in (keys.RUNNING, keys.DEADLINES, keys.OPEN_BATCHES, keys.WORKERS_SEEN):
        store.client.zadd(index, {"y": 1})
    store.admit("a")
    assert due() == {"leases", "deadlines", "batches", "workers", "lines"}


def test_a_tick_with_nothing_to_do_is_few_round_trips(store: Store) -> None:
    store.beat(offer("a"))
    controller = store.controller("c1")
    controller.tick()
    before = store.client.info("commandstats")
    controller.tick()
    after = store.client.info("commandstats")
    names = [name for name in after if name != "cmdstat_info"]
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in names}
    assert sum(calls.values()) <= 24, calls


def test_new_leader_goes_on_with_rates_and_says_nothing_twice(store: Store) -> None:
    store.beat(offer("a"))
    store.admit("a")
    first = store.controller("c1")
    decided = first.tick()
    assert decided is not None and decided.placement.workers["w"].hold == ("a",)
    assert store.controller("c2").tick() is None
    store.client.delete(keys.LEADER)  # the lease of the first one ended
    second = store.controller("c2")
    assert second.tick() is not None
    assert first.tick() is None
    rates = store.policy.state().rates
    assert isinstance(rates["a"], Rate) and rates["a"].per_s > 0
    assert not store.policy.remember(PolicyState(), [], "c1", 1), "the epoch keeps the late one out"
    assert store.policy.state().rates == rates


def test_decisions_are_kept_once_with_their_terms_and_read_by_model(store: Store) -> None:
    store.beat(offer("a"), offer("b"))
    store.admit("a")
    controller = store.controller("c1")
    for _ in range(3):
        controller.tick()
    decisions = store.policy.decisions(10, models={"a"})
    (load,) = [each for each in decisions if each.action is Action.LOAD]
    assert (load.code, load.worker, load.terms["need_bytes"]) == (Code.ROOM, "w", 1000)
    assert len({each.topic for each in decisions}) == len(decisions)
    assert store.policy.decisions(10, models={"b"}) == []
    assert store.policy.decisions(1) == decisions[:1]


def test_jobs_wait_while_the_only_worker_with_their_model_restarts(store: Store) -> None:
    store.beat(offer("b"))
    other = msgspec.structs.replace(store.fleet.fleet().workers[0], id=WorkerId("restarting"), offers=(offer("a"),))
    store.fleet.heartbeat(msgspec.structs.replace(other, is_draining=True))
    job_id, unknown = store.admit("a"), store.admit("never-offered")
    controller = store.controller("c1")
    controller.tick()
    store.fleet.forget_worker(WorkerId("restarting"))
    controller.tick()
    assert store.jobs.get(job_id).state is JobState.QUEUED
    assert store.jobs.get(unknown).state is JobState.FAILED
    (decision,) = store.policy.decisions(10, models={"a"})
    assert decision.code is Code.NO_WORKER


def test_jobs_of_a_broken_model_go_to_its_fallback_once(store: Store) -> None:
    store.beat(offer("a", failure="truncated", fallback="b"), offer("b"))
    job_id = store.admit("a")
    store.controller("c1").tick()
    assert (store.jobs.get(job_id).model, store.jobs.get(job_id).state) == ("b", JobState.QUEUED)
    assert store.leases.claim(job_id, "a", WorkerId("w")) is None, "a wake-up from before"
    assert store.jobs.hand_over(job_id, "b", "a") is None, "never back and forth"
    attempt = store.leases.claim(job_id, "b", WorkerId("w"))
    assert attempt is not None and attempt.model == "b"
    assert store.jobs.hand_over(job_id, "b", "c") is None, "it runs"


def test_no_more_late_jobs_go_to_a_fallback_than_it_has_slots_and_the_most_urgent_go(store: Store) -> None:
    store.beat(offer("a"), offer("b"))
    batch, default, urgent = map(store.admit, "aaa", (Priority.BATCH, Priority.DEFAULT, Priority.INTERACTIVE))
    rescue = store.controller("c1").rescue
    rescue.hand_over("a", "b", at_most=1)
    assert [store.jobs.get(each).model for each in (batch, default, urgent)] == ["a", "a", "b"]
    rescue.hand_over("a", "b", at_most=1)
    assert [store.jobs.get(each).model for each in (batch, default, urgent)] == ["a", "b", "b"]
    rescue.hand_over("a", "b")
    assert store.jobs.get(batch).model == "b"
