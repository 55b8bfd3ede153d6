"""From wake-up to outcome: what `run_attempt` writes, with a scripted host on a real store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tasks.celery_app import create_celery_app
from tasks.errors import CannotResume
from tasks.generate import AttemptStores, run_attempt
from tasks.generation import GenerationRequest
from tasks.jobs import JobError, JobId, JobState, Priority, Usage, WorkerId, new_job_id
from tasks.ports import Attempt, Failed, Finished, Lost, Outcome, Parked
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.admission_store import AdmissionStore
from tasks.store.connection import connect
from tasks.store.job_store import JobStore
from tasks.store.lease_store import LeaseStore
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.stream_events import End, Reset, Tokens, Vectors, decode_numbered
from tasks.wakeups import Wakeups

MODEL = "demo"


@dataclass
class ScriptedHost:
    """One slot; each attempt ends as the next script says."""

    scripts: list[Callable[[Attempt], Outcome]]
    worker_id: WorkerId = field(default=WorkerId("w1"))
    fingerprint: str = "f1"
    runner_model: str = MODEL
    is_full: bool = False
    seen: list[Attempt] = field(default_factory=list)
    given_back: int = 0

    def take_slot(self, model: str, priority: Priority) -> ScriptedHost | None:
        return None if self.is_full else self

    def run(self, attempt: Attempt) -> Outcome:
        self.seen.append(attempt)
        return self.scripts.pop(0)(attempt)

    def give_back(self) -> None:
        self.given_back += 1


class Bench:
    def __init__(self, settings: StoreSettings) -> None:
        self.client = connect(settings)
        self.stores = AttemptStores(
            jobs=JobStore(self.client, settings),
            leases=LeaseStore(self.client, settings),
            writer=TokenWriter(self.client),
            wakeups=Wakeups(create_celery_app(settings)),
        )
        request = GenerationRequest(model=MODEL, prompt="x")
        admission = AdmissionStore(self.client, settings).admit(
            new_job_id(), request, priority=Priority.BATCH, deadline_ms=None, idempotency_key=None
        )
        self.job_id: JobId = admission.job_id

    def run(self, host: ScriptedHost) -> None:
        run_attempt(self.job_id, MODEL, Priority.BATCH, host=host, stores=self.stores)

    def wakeups(self) -> int:
        return sum(self.client.llen(name) for name in self.client.scan_iter("model.*"))

    def events(self) -> list[object]:
        return [decode_numbered(fields[b"e"]) for _, fields in self.client.xrange(keys.stream(self.job_id))]

    def say(self, text: str) -> Callable[[Attempt], Outcome]:
        """Publish a text and park."""

        def script(attempt: Attempt) -> Outcome:
            chunk = Chunk(attempt.job_id, attempt.number, attempt.last_seq + 1, Tokens(text=text, ids=(7,)))
            self.stores.writer.append([chunk])
            return Parked()

        return script


def say_row(attempt: Attempt) -> Chunk:
    return Chunk(attempt.job_id, attempt.number, attempt.last_seq + 1, Vectors((b"....", b"....")))


@pytest.fixture
def bench(store_settings: StoreSettings) -> Bench:
    return Bench(store_settings)


def finish(attempt: Attempt) -> Outcome:
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    return Finished(text=attempt.emitted_text + "end", finish_reason="stop", usage=usage)


def refuse_prefix(attempt: Attempt) -> Outcome:
    assert attempt.forced_ids
    return Failed(error=JobError(code=CannotResume.code, message="The model's file changed."), is_retryable=False)


def test_wakeup_without_a_slot_goes_back_to_its_queue(bench: Bench) -> None:
    bench.run(ScriptedHost([], is_full=True))
    assert bench.wakeups() == 1
    assert bench.stores.jobs.get(bench.job_id).state is JobState.QUEUED


def test_second_wakeup_gives_its_slot_back(bench: Bench) -> None:
    host = ScriptedHost([finish])
    bench.run(host)
    bench.run(host)
    assert (len(host.seen), host.given_back) == (1, 1)


def test_parked_attempt_is_woken_and_continued(bench: Bench) -> None:
    host = ScriptedHost([bench.say("Once "), finish])
    bench.run(host)
    assert bench.wakeups() == 1
    bench.run(host)
    assert (host.seen[1].number, host.seen[1].forced_ids, host.seen[1].emitted_text) == (2, (7,), "Once ")
    job = bench.stores.jobs.get(bench.job_id)
    assert job.result is not None
    assert (job.state, job.result.text) == (JobState.SUCCEEDED, "Once end")


def test_prefix_that_can_not_be_continued_is_reset_and_the_job_starts_over(bench: Bench) -> None:
    host = ScriptedHost([bench.say("Once "), refuse_prefix, finish])
    for _ in range(3):
        bench.run(host)
    first, reset, end = bench.events()
    assert first == Tokens(text="Once ", ids=(7,))
    assert reset == Reset(attempt=3, reason="The model's file changed.")
    assert isinstance(end, End)
    assert (host.seen[2].forced_ids, host.seen[2].emitted_text) == ((), "")
    job = bench.stores.jobs.get(bench.job_id)
    assert job.result is not None
    assert (job.state, job.result.text, job.last_seq) == (JobState.SUCCEEDED, "end", 3)


def test_lost_attempt_writes_nothing(bench: Bench) -> None:
    bench.run(ScriptedHost([lambda attempt: Lost()]))
    assert bench.events() == []
    assert bench.stores.jobs.get(bench.job_id).state is JobState.RUNNING


def test_a_new_attempt_knows_how_many_rows_are_out(bench: Bench) -> None:
    def publish(attempt: Attempt) -> Outcome:
        bench.stores.writer.append([say_row(attempt)])
        return Parked()

    host = ScriptedHost([publish, publish, finish])
    for _ in range(3):
        bench.run(host)
    assert [attempt.published_rows for attempt in host.seen] == [0, 2, 4]


def test_job_admitted_before_requests_had_a_tag_is_read(bench):
    bench.client.hset(keys.job(bench.job_id), "request", b'{"model":"demo","prompt":"old"}')
    host = ScriptedHost(
        [lambda _: Finished(text="", finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=0))]
    )
    bench.run(host)
    assert host.seen[0].request == GenerationRequest(model=MODEL, prompt="old")


def test_job_whose_record_nobody_can_read_fails_at_once(bench):
    bench.client.hset(keys.job(bench.job_id), "request", b'{"type":"paint","model":"demo"}')
    host = ScriptedHost([])
    bench.run(host)
    job = bench.stores.jobs.get(bench.job_id)
    assert (job.state, job.attempt, job.error.code) == (JobState.FAILED, 1, "record_unreadable")
    assert "another version" in job.error.message
    assert host.given_back == 1
    assert bench.stores.leases.expired(10) == []
