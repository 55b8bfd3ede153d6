"""Any sequence of calls by workers, zombies, clients and controllers: the server does what a model in memory does.

The model is the protocol without Lua, Redis or time: a job has a state, an attempt, a lease that has ended or not,
and a list of events. After every call the whole store is compared with it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tasks.celery_app import create_celery_app
from tasks.generation import GenerationRequest
from tasks.jobs import NEXT, JobError, JobId, JobResult, JobState, Priority, WorkerId, new_job_id
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.admission_store import AdmissionStore
from tasks.store.backlog_store import BacklogStore
from tasks.store.connection import connect
from tasks.store.job_store import JobStore
from tasks.store.lease_store import JobIsLate, LeaseStore
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.store.verdict import Verdict
from tasks.stream_events import End, Reset, Tokens, decode_numbered
from tasks.wakeups import Wakeups

MODELS = ("alpha", "beta")
MAX_ATTEMPTS = 3
MAX_JOBS = 6
USELESS_WAKEUPS = 0
FAR_MS, PAST_MS = 9_999_999_999_999, 1
BROKEN = JobError(code="store_unavailable", message="The store took no tokens.")
REFUSED = JobError(code="model_load_failed", message="It can't be loaded.")
ANY_JOB = JobId("job_0")
QUEUED, RUNNING = JobState.QUEUED, JobState.RUNNING


@dataclass
class ModelJob:
    """What the store should know of a job."""

    id: JobId
    model: str
    priority: Priority
    deadline_ms: int | None
    state: JobState = QUEUED
    attempt: int = 0
    failures: int = 0
    events: int = 0
    voided: int = 0  # events up to the newest reset
    worker: WorkerId | None = None  # of the newest attempt
    has_lease_ended: bool = False
    is_cancel_wanted: bool = False
    is_dead: bool = False
    was_handed_over: bool = False
    history: list[JobState] = field(default_factory=lambda: [QUEUED])

    @property
    def is_open(self) -> bool:
        return not self.state.is_terminal

    @property
    def verdict(self) -> Verdict:
        """For whoever holds the job."""
        return Verdict.CANCEL if self.is_cancel_wanted else Verdict.OK

    def move(self, state: JobState) -> None:
        assert state in NEXT[self.state], f"{self.state} → {state}"
        self.state = state
        self.history.append(state)
        if state.is_terminal:
            self.events += 1  # the End

    def back_to_queue(self, *, is_failure: bool) -> bool:
        """False when that was the last attempt, or the job is to be cancelled."""
        self.has_lease_ended = False
        self.failures += is_failure
        if self.is_cancel_wanted:
            self.move(JobState.CANCELLED)
            return False
        if is_failure and self.failures >= MAX_ATTEMPTS:
            self.move(JobState.FAILED)
            self.is_dead = True
            return False
        self.move(QUEUED)
        return True


class ProtocolMachine(RuleBasedStateMachine):
    """`picks` choose among the jobs that a rule makes sense for, so that hardly a call is wasted."""

    store_settings: ClassVar[StoreSettings]
    wakeups: ClassVar[Wakeups]

    @initialize()
    def start(self) -> None:
        self.client = connect(self.store_settings)
        self.client.flushall()
        self.jobs = JobStore(self.client, self.store_settings)
        self.admissions = AdmissionStore(self.client, self.store_settings)
        self.leases = LeaseStore(self.client, self.store_settings)
        self.writer = TokenWriter(self.client)
        self.backlog = BacklogStore(self.client)
        self.known: list[ModelJob] = []

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.close()

    picks = st.integers(0, 2**16)

    def choose(self, pick: int, *states: JobState) -> ModelJob | None:
        found = [job for job in self.known if not states or job.state in states]
        return found[pick % len(found)] if found else None

    # ---- clients

    @rule(
        model=st.sampled_from(MODELS),
        priority=st.sampled_from(Priority),
        deadline_ms=st.sampled_from([None, None, FAR_MS, PAST_MS]),
    )
    def admit(self, model: str, priority: Priority, deadline_ms: int | None) -> None:
        if len(self.known) >= MAX_JOBS:
            return
        job = ModelJob(new_job_id(), model, priority, deadline_ms)
        self.send_admission(job)
        self.known.append(job)

    @rule(pick=picks)
    def repeat_an_admission_whose_reply_got_lost(self, pick: int) -> None:
        if job := self.choose(pick):
            self.send_admission(job)

    def send_admission(self, job: ModelJob) -> None:
        request = GenerationRequest(model=job.model, prompt="x")
        admission = self.admissions.admit(
            job.id,
            request,
            priority=job.priority,
            deadline_ms=job.deadline_ms,
            idempotency_key=None,
            wakeup=self.wakeups.envelope(job.id, job.model, job.priority),
        )
        assert (admission.job_id, admission.is_new) == (job.id, True)

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        if job := self.choose(pick):
            if job.state is QUEUED:
                job.move(JobState.CANCELLED)
            elif job.state is RUNNING:
                job.is_cancel_wanted = True
            assert self.jobs.cancel(job.id).state is job.state

    # ---- workers

    @rule(pick=picks, worker=st.sampled_from(["w1", "w2"]), times=st.integers(1, 2))
    def claim(self, pick: int, worker: str, times: int) -> None:
        """Also by duplicate wake-ups, of jobs in any state. Twice: the connection repeats a call without a reply."""
        job = self.choose(pick)
        if job is None:
            return
        try:
            with self.every_script_sent(times):
                attempt = self.leases.claim(job.id, job.model, WorkerId(worker))
        except JobIsLate:
            assert (job.state, job.deadline_ms) == (QUEUED, PAST_MS)
            return
        if job.state is not QUEUED:
            assert attempt is None
            return
        job.move(RUNNING)
        job.attempt += 1
        job.worker = WorkerId(worker)
        job.has_lease_ended = False
        assert attempt is not None
        assert (attempt.number, attempt.last_seq) == (job.attempt, job.events)
        kept = range(job.voided + 1, job.events + 1)
        assert attempt.forced_ids == tuple(kept)
        assert attempt.emitted_text == "".join(f"{seq} " for seq in kept)

    @rule(pick=picks)
    def append(self, pick: int) -> None:
        if job := self.choose(pick, RUNNING):
            job.events += 1
            assert self.writer.append([chunk(job, job.attempt, job.events)]) == [job.verdict]

    @rule(pick=picks)
    def reset(self, pick: int) -> None:
        """The attempt can't continue the text: all of it is void."""
        if job := self.choose(pick, RUNNING):
            job.events += 1
            job.voided = job.events
            event = Reset(attempt=job.attempt + 1, reason="test")
            assert self.writer.append([Chunk(job.id, job.attempt, job.events, event)]) == [job.verdict]

    @rule()
    def append_for_all_that_run(self) -> None:
        running = [job for job in self.known if job.state is RUNNING]
        for job in running:
            job.events += 1
        chunks = [chunk(job, job.attempt, job.events) for job in running]
        assert not chunks or self.writer.append(chunks) == [job.verdict for job in running]

    @rule(pick=picks)
    def repeat_an_append_whose_reply_got_lost(self, pick: int) -> None:
        if (job := self.choose(pick, RUNNING)) and job.events:
            assert self.writer.append([chunk(job, job.attempt, job.events)]) == [job.verdict]

    @rule(pick=picks)
    def append_beyond_a_gap(self, pick: int) -> None:
        if job := self.choose(pick, RUNNING):
            assert self.writer.append([chunk(job, job.attempt, job.events + 2)]) == [Verdict.LOST]

    @rule(pick=picks)
    def renew(self, pick: int) -> None:
        if job := self.choose(pick, RUNNING):
            assert self.leases.renew([(job.id, job.attempt)]) == [job.verdict]
            job.has_lease_ended = False

    @rule(
        pick=picks,
        state=st.sampled_from([JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED]),
        times=st.integers(1, 2),
    )
    def finish(self, pick: int, state: JobState, times: int) -> None:
        """Twice: the reply to the first call got lost."""
        if job := self.choose(pick, RUNNING):
            for _ in range(times):
                assert self.send_finish(job, job.attempt, state) is True
            job.move(state)

    @rule(pick=picks, failure=st.sampled_from([None, BROKEN]))
    def release(self, pick: int, failure: JobError | None) -> None:
        if job := self.choose(pick, RUNNING):
            released = self.leases.release(job.id, job.attempt, failure=failure)
            is_queued = job.back_to_queue(is_failure=failure is not None)
            assert (released is not None) == is_queued

    # ---- zombies: attempts that were rescued, or whose job has ended

    @rule(pick=picks, age=st.integers(0, 3))
    def zombie_writes(self, pick: int, age: int) -> None:
        job = self.choose(pick)
        if job is None or not job.attempt:
            return
        number = max(1, job.attempt - age)
        if number == job.attempt and job.state is RUNNING:
            return  # it is the holder
        assert self.writer.append([chunk(job, number, job.events + 1)]) == [Verdict.LOST]
        assert self.writer.append([chunk(job, number, max(1, job.events))]) == [Verdict.LOST]
        assert self.leases.renew([(job.id, number)]) == [Verdict.LOST]
        assert self.leases.release(job.id, number, failure=BROKEN) is None
        assert self.leases.rescue(job.id, number, WorkerId("w1")) is None
        for state in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED):
            # The newest attempt is told so if the job ended as it says, by whomever: a lost reply looks the same.
            assert self.send_finish(job, number, state) is (number == job.attempt and state is job.state)

    # ---- time and the controller

    @rule(pick=picks)
    def lease_ends(self, pick: int) -> None:
        if job := self.choose(pick, RUNNING):
            self.client.zadd(keys.RUNNING, {job.id: 1})
            job.has_lease_ended = True

    @rule(pick=picks)
    def rescue(self, pick: int) -> None:
        """Two controllers at once."""
        if job := self.choose(pick, RUNNING):
            assert job.worker is not None
            number, was_due = job.attempt, job.has_lease_ended
            released = self.leases.rescue(job.id, number, job.worker)
            is_queued = was_due and job.back_to_queue(is_failure=True)
            assert (released is not None) == is_queued
            assert self.leases.rescue(job.id, number, job.worker) is None

    @rule()
    def sweep(self) -> None:
        due = {(job.id, job.attempt, job.worker) for job in self.known if job.has_lease_ended and job.state is RUNNING}
        assert set(self.leases.expired(100)) == due

    @rule(pick=picks, state=st.sampled_from([JobState.EXPIRED, JobState.FAILED]))
    def end_waiting(self, pick: int, state: JobState) -> None:
        """The deadline passed, or the model can't be loaded anywhere."""
        if job := self.choose(pick):
            self.jobs.end_waiting(job.id, state, REFUSED)
            if job.state is QUEUED:
                job.move(state)
                job.is_dead = state is JobState.FAILED

    @rule(pick=picks)
    def hand_over(self, pick: int) -> None:
        """To its model's fallback, by a controller that found it in the line some time ago."""
        job = self.choose(pick)
        if job is None:
            return
        target = next(model for model in MODELS if model != job.model)
        priority = self.jobs.hand_over(job.id, job.model, target)
        if job.state is not QUEUED or job.events or job.was_handed_over:
            assert priority is None
            return
        assert priority is job.priority
        job.model, job.was_handed_over = target, True
        assert self.leases.claim(job.id, next(model for model in MODELS if model != target), WorkerId("w1")) is None

    @rule()
    def tend_lines(self) -> None:
        """Nobody pops here, so the wake-ups of jobs that do not wait pile up."""
        before = {model: self.woken(model) for model in MODELS}
        self.backlog.lost()
        for model in MODELS:
            sent, left = before[model], self.woken(model)
            queued = {job.id for job in self.known if (job.state, job.model) == (QUEUED, model)}
            num_spare = len(queued) + USELESS_WAKEUPS if queued else 0
            in_order = iter(sent)
            assert all(job_id in in_order for job_id in left)
            assert queued.intersection(left) == queued.intersection(sent)
            if len(sent) > len(queued) + num_spare:
                assert len(left) <= max(len(queued), len(sent) - num_spare)
            else:
                assert left == sent

    # ---- what must hold after every call

    @invariant()
    def records_and_streams_are_as_in_the_model(self) -> None:
        for job in getattr(self, "known", ()):
            record = self.jobs.get(job.id)
            assert (record.state, record.attempt, record.last_seq) == (job.state, job.attempt, job.events)
            assert record.model == job.model
            assert record.cancel_requested == job.is_cancel_wanted
            assert job.state is not QUEUED or not job.is_cancel_wanted
            entries = self.client.xrange(keys.stream(job.id))
            assert [entry_id for entry_id, _ in entries] == [b"0-%d" % seq for seq in range(1, job.events + 1)]
            ends = [seq for seq, (_, fields) in enumerate(entries, 1) if isinstance(decode_numbered(fields[b"e"]), End)]
            assert ends == ([] if job.is_open else [job.events])
            assert (self.client.pttl(keys.job(job.id)) > 0) == (not job.is_open)

    @invariant()
    def indexes_hold_exactly_the_right_jobs(self) -> None:
        if not hasattr(self, "known"):
            return
        queued = [job for job in self.known if job.state is QUEUED]
        for model in MODELS:
            assert self.members(keys.waiting(model)) == {job.id for job in queued if job.model == model}
        assert self.members(keys.QUEUED) == {job.id for job in queued}
        assert self.members(keys.RUNNING) == {job.id for job in self.known if job.state is RUNNING}
        assert self.members(keys.DEADLINES) == {job.id for job in self.known if job.is_open and job.deadline_ms}
        assert self.members(keys.DEAD) == {job.id for job in self.known if job.is_dead}
        assert self.members(keys.JOBS) == {job.id for job in self.known}
        assert {job.model for job in queued} <= {name.decode() for name in self.client.smembers(keys.WAITING_MODELS)}

    @invariant()
    def terminal_states_are_final(self) -> None:
        for job in getattr(self, "known", ()):
            assert not any(state.is_terminal for state in job.history[:-1])

    @contextmanager
    def every_script_sent(self, times: int) -> Iterator[None]:
        """The reply to all but the last call got lost."""
        send = self.leases._claim

        def repeat(**arguments: Any) -> Any:
            return [send(**arguments) for _ in range(times)][-1]

        self.leases._claim = repeat  # type: ignore[assignment]
        try:
            yield
        finally:
            self.leases._claim = send

    def woken(self, model: str) -> list[JobId]:
        """Whose wake-ups are there, by priority and in the order in which workers pop."""
        lists = [envelope.list_key for each in Priority if (envelope := self.wakeups.envelope(ANY_JOB, model, each))]
        messages = [message for name in lists for message in reversed(self.client.lrange(name, 0, -1))]
        return [JobId(json.loads(base64.b64decode(json.loads(message)["body"]))[0][0]) for message in messages]

    def members(self, key: str) -> set[JobId]:
        return {JobId(member.decode()) for member in self.client.zrange(key, 0, -1)}

    def send_finish(self, job: ModelJob, number: int, state: JobState) -> bool:
        error = REFUSED if state is JobState.FAILED else None
        result = JobResult(text="", finish_reason="stop", usage=None) if error is None else None
        return self.leases.finish(job.id, number, state, result=result, error=error)


def chunk(job: ModelJob, attempt: int, seq: int) -> Chunk:
    return Chunk(job.id, attempt, seq, Tokens(text=f"{seq} ", ids=(seq,)))


def test_store_does_what_the_model_does(store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.store.backlog_store.USELESS_WAKEUPS", USELESS_WAKEUPS)

    class Bound(ProtocolMachine):
        pass

    Bound.wakeups = Wakeups(create_celery_app(store_settings))
    Bound.store_settings = store_settings.model_copy(update={"max_attempts": MAX_ATTEMPTS, "quarantine_s": 0})
    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=25,
            stateful_step_count=50,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking against a server takes minutes
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
