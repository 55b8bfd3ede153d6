"""The job protocol against a real server: who may write what, when."""

from __future__ import annotations

import pytest
import redis

from tasks.answer_cache import AnswerKey, CacheWish
from tasks.errors import IdempotencyMismatch, JobNotFound, JobNotRepeatable, QueueFull, StoreUnavailable
from tasks.generation import ChatMessage, GenerationRequest, SamplingParams
from tasks.job_filter import JobFilter
from tasks.jobs import JobError, JobId, JobResult, JobState, Priority, Usage, WorkerId, new_job_id
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.admission_store import FORGET_AFTER_MS, AdmissionStore
from tasks.store.backlog_store import BacklogStore
from tasks.store.connection import Client, connect
from tasks.store.fleet_store import FleetStore
from tasks.store.job_lists import JobLists
from tasks.store.job_store import JobStore
from tasks.store.lease_store import JobIsLate, LeaseStore
from tasks.store.records import FIELDS
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.store.verdict import Verdict
from tasks.stream_events import End, Tokens, decode_numbered

MODEL = "demo"
W1, W2 = WorkerId("w1"), WorkerId("w2")
BROKEN = JobError(code="store_unavailable", message="The store took no tokens.")


def request(text: str = "hello", seed: int = 1) -> GenerationRequest:
    messages = (ChatMessage(role="user", content=text),)
    return GenerationRequest(model=MODEL, messages=messages, sampling=SamplingParams(seed=seed))


@pytest.fixture
def leases(client: Client, store_settings: StoreSettings) -> LeaseStore:
    return LeaseStore(client, store_settings)


@pytest.fixture
def writer(client: Client) -> TokenWriter:
    return TokenWriter(client)


def admit(admissions: AdmissionStore, **options: object) -> JobId:
    settings: dict[str, object] = {"priority": Priority.DEFAULT, "deadline_ms": None, "idempotency_key": None}
    return admissions.admit(new_job_id(), request(), **{**settings, **options}).job_id  # type: ignore[arg-type]


def tokens(job_id: JobId, attempt: int, seq: int, text: str = "a") -> Chunk:
    return Chunk(job_id, attempt, seq, Tokens(text=text, ids=(seq,)))


def expire_lease(client: Client, job_id: JobId) -> None:
    client.zadd(keys.RUNNING, {job_id: 1})


def test_admitted_job_is_queued_and_counted(jobs: JobStore, admissions: AdmissionStore, lists: JobLists) -> None:
    first, second = admit(admissions), admit(admissions)
    assert jobs.get(first).state is JobState.QUEUED
    assert sorted(jobs.position(jobs.get(job_id)) or 0 for job_id in (first, second)) == [0, 1]
    assert {job.id for job in lists.recent(10).jobs} == {first, second}


def test_interactive_job_stands_before_batch_jobs(jobs: JobStore, admissions: AdmissionStore) -> None:
    batch = admit(admissions, priority=Priority.BATCH)
    interactive = admit(admissions, priority=Priority.INTERACTIVE)
    assert jobs.position(jobs.get(interactive)) == 0
    assert jobs.position(jobs.get(batch)) == 1


def test_unknown_job_is_not_found(jobs: JobStore) -> None:
    with pytest.raises(JobNotFound):
        jobs.get(JobId("job_0"))
    with pytest.raises(JobNotFound):
        jobs.cancel(JobId("job_0"))


def test_idempotency_key_attaches_same_body_and_refuses_another(admissions: AdmissionStore) -> None:
    first = admit(admissions, idempotency_key="k")
    again = admissions.admit(
        new_job_id(), request(seed=99), priority=Priority.DEFAULT, deadline_ms=None, idempotency_key="k"
    )
    assert (again.job_id, again.is_new) == (first, False)
    with pytest.raises(IdempotencyMismatch):
        admissions.admit(
            new_job_id(), request("other"), priority=Priority.DEFAULT, deadline_ms=None, idempotency_key="k"
        )


def test_full_queue_refuses_with_numbers(client: Client, store_settings: StoreSettings) -> None:
    admissions = AdmissionStore(client, store_settings.model_copy(update={"max_queue_per_model": 1}))
    admit(admissions)
    with pytest.raises(QueueFull, match=r"1 jobs already wait for 'demo' \(limit 1\)"):
        admit(admissions)


def test_second_wakeup_finds_the_job_taken(admissions: AdmissionStore, leases: LeaseStore) -> None:
    job_id = admit(admissions)
    attempt = leases.claim(job_id, MODEL, W1)
    assert attempt is not None and attempt.number == 1
    assert leases.claim(job_id, MODEL, W2) is None


def test_late_job_is_not_started(admissions: AdmissionStore, leases: LeaseStore) -> None:
    job_id = admit(admissions, deadline_ms=1)
    with pytest.raises(JobIsLate):
        leases.claim(job_id, MODEL, W1)


def test_append_is_numbered_and_repeatable(
    client: Client, jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore, writer: TokenWriter
) -> None:
    job_id = admit(admissions)
    leases.claim(job_id, MODEL, W1)
    assert writer.append([tokens(job_id, 1, 1)]) == [Verdict.OK]
    assert writer.append([tokens(job_id, 1, 1)]) == [Verdict.OK]  # the reply got lost, the call is repeated
    assert writer.append([tokens(job_id, 1, 3)]) == [Verdict.LOST]  # a hole is never written
    assert writer.append([tokens(job_id, 1, 2)]) == [Verdict.OK]
    assert [entry_id for entry_id, _ in client.xrange(keys.stream(job_id))] == [b"0-1", b"0-2"]
    assert jobs.get(job_id).last_seq == 2


def test_zombie_attempt_can_write_nothing(
    client: Client, admissions: AdmissionStore, leases: LeaseStore, writer: TokenWriter
) -> None:
    job_id = admit(admissions)
    leases.claim(job_id, MODEL, W1)
    writer.append([tokens(job_id, 1, 1, "one ")])
    expire_lease(client, job_id)
    assert leases.expired(10) == [(job_id, 1, W1)]
    released = leases.rescue(job_id, 1, W1)
    assert released is not None and (released.model, released.priority) == (MODEL, Priority.DEFAULT)
    second = leases.claim(job_id, MODEL, W2)
    assert second is not None
    assert (second.number, second.last_seq, second.forced_ids, second.emitted_text) == (2, 1, (1,), "one ")

    result = JobResult(text="x", finish_reason="stop", usage=None)
    assert writer.append([tokens(job_id, 1, 2)]) == [Verdict.LOST]
    assert leases.renew([(job_id, 1)]) == [Verdict.LOST]
    assert leases.finish(job_id, 1, JobState.SUCCEEDED, result=result) is False
    assert leases.release(job_id, 1, failure=None) is None
    assert writer.append([tokens(job_id, 2, 2)]) == [Verdict.OK]
    assert leases.finish(job_id, 2, JobState.SUCCEEDED, result=result) is True


def test_rescue_leaves_a_renewed_lease_alone(
    client: Client, jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore
) -> None:
    job_id = admit(admissions)
    leases.claim(job_id, MODEL, W1)
    expire_lease(client, job_id)
    expired = leases.expired(10)
    leases.renew([(job_id, 1)])
    assert [leases.rescue(*row) for row in expired] == [None]
    assert jobs.get(job_id).state is JobState.RUNNING


def test_terminal_state_is_written_once(
    client: Client, jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore, writer: TokenWriter
) -> None:
    job_id = admit(admissions)
    leases.claim(job_id, MODEL, W1)
    usage = Usage(prompt_tokens=3, completion_tokens=1)
    done = JobResult(text="a", finish_reason="stop", usage=usage)
    assert leases.finish(job_id, 1, JobState.SUCCEEDED, result=done) is True
    assert leases.finish(job_id, 1, JobState.SUCCEEDED, result=done) is True  # repeated call, no second event
    assert leases.finish(job_id, 1, JobState.FAILED, error=BROKEN) is False
    assert jobs.cancel(job_id).state is JobState.SUCCEEDED
    assert writer.append([tokens(job_id, 1, 2)]) == [Verdict.LOST]
    assert client.xlen(keys.stream(job_id)) == 1
    assert jobs.get(job_id).result == done
    assert client.pttl(keys.job(job_id)) > 0 and client.pttl(keys.stream(job_id)) > 0


def test_last_chunk_is_written_with_the_end_once_and_in_order(
    client: Client, jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore, writer: TokenWriter
) -> None:
    job_id = admit(admissions)
    leases.claim(job_id, MODEL, W1)
    done = JobResult(text="one two ", finish_reason="stop", usage=None)
    tail = tokens(job_id, 1, 2)
    assert leases.finish(job_id, 1, JobState.SUCCEEDED, result=done, tail=tail) is False  # what came before is missing
    assert writer.append([tokens(job_id, 1, 1)]) == [Verdict.OK]
    assert leases.finish(job_id, 2, JobState.SUCCEEDED, result=done, tail=tail) is False
    assert leases.finish(job_id, 1, JobState.SUCCEEDED, result=done, tail=tail) is True
    assert leases.finish(job_id, 1, JobState.SUCCEEDED, result=done, tail=tail) is True  # its reply got lost
    events = [decode_numbered(fields[b"e"]) for _, fields in client.xrange(keys.stream(job_id))]
    assert [type(event).__name__ for event in events] == ["Tokens", "Tokens", "End"]
    assert events[1] == tail.event
    assert jobs.get(job_id).last_seq == 3


def test_broken_attempts_end_in_the_dead_letter_list(
    client: Client, jobs: JobStore, admissions: AdmissionStore, lists: JobLists, leases: LeaseStore
) -> None:
    job_id = admit(admissions)
    for number in (1, 2, 3):
        attempt = leases.claim(job_id, MODEL, W1)
        assert attempt is not None and attempt.number == number
        released = leases.release(job_id, number, failure=BROKEN)
        assert (released is None) == (number == 3)
    job = jobs.get(job_id)
    assert (job.state, job.error) == (JobState.FAILED, BROKEN)
    assert (job.failures, job.last_error, job.workers) == (3, BROKEN, (W1, W1, W1))
    assert FleetStore(client).broken_attempts() == {(BROKEN.code, MODEL): 3}
    assert [dead.id for dead in lists.dead(10)] == [job_id]
    assert lists.dead(10, JobFilter(model="other")) == []
    week_ms = 7 * 24 * 3600 * 1000
    for key in (keys.job(job_id), keys.stream(job_id)):
        assert week_ms - 10_000 < client.pttl(key) <= week_ms


def test_broken_attempt_is_on_record_while_the_job_goes_on(
    jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore
) -> None:
    job_id = admit(admissions)
    leases.claim(job_id, MODEL, W1)
    leases.release(job_id, 1, failure=BROKEN)
    leases.claim(job_id, MODEL, W2)
    job = jobs.get(job_id)
    assert (job.failures, job.last_error, job.error, job.workers) == (1, BROKEN, None, (W1, W2))


def test_job_of_a_model_that_cannot_be_served_is_a_dead_letter(
    client: Client, jobs: JobStore, admissions: AdmissionStore, lists: JobLists
) -> None:
    failed, expired = admit(admissions), admit(admissions)
    jobs.end_waiting(failed, JobState.FAILED, BROKEN)
    jobs.end_waiting(expired, JobState.EXPIRED, BROKEN)
    assert [job.id for job in lists.dead(10)] == [failed]
    assert client.pttl(keys.job(failed)) > client.pttl(keys.job(expired)) > 0


def repeat(admissions: AdmissionStore, jobs: JobStore, job_id: JobId) -> JobId:
    priority = jobs.get(job_id).priority
    return admissions.admit(
        new_job_id(),
        jobs.request_of(job_id),
        priority=priority,
        deadline_ms=None,
        idempotency_key=None,
        repeats=job_id,
    ).job_id


def test_requeued_job_is_a_new_one_and_leaves_the_dead_letters(
    jobs: JobStore, admissions: AdmissionStore, lists: JobLists
) -> None:
    dead = admit(admissions)
    jobs.end_waiting(dead, JobState.FAILED, BROKEN)
    again = repeat(admissions, jobs, dead)
    assert again != dead
    assert repeat(admissions, jobs, dead) == again  # a second call attaches
    assert (jobs.get(again).requeued_from, jobs.get(dead).requeued_as) == (dead, again)
    assert jobs.get(dead).state is JobState.FAILED
    assert jobs.request_of(again) == request()
    assert lists.dead(10) == []
    jobs.end_waiting(again, JobState.FAILED, BROKEN)
    assert repeat(admissions, jobs, dead) not in {again, dead}  # the repetition failed as well: another one


def test_only_a_job_without_an_answer_can_be_requeued(
    jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore
) -> None:
    job_id = admit(admissions)
    with pytest.raises(JobNotRepeatable, match="it is queued"):
        repeat(admissions, jobs, job_id)
    leases.claim(job_id, MODEL, W1)
    leases.finish(job_id, 1, JobState.SUCCEEDED, result=JobResult(text="", finish_reason="stop", usage=None))
    with pytest.raises(JobNotRepeatable, match="it has its answer"):
        repeat(admissions, jobs, job_id)
    with pytest.raises(JobNotFound):
        repeat(admissions, jobs, JobId("job_0"))


def test_entry_of_a_job_that_is_not_queued_leaves_the_line(client: Client, admissions: AdmissionStore) -> None:
    job_id = admit(admissions)
    client.zadd(keys.waiting(MODEL), {"gone": 1})
    assert BacklogStore(client).lost() == []  # the other one was woken just now
    assert client.zrange(keys.waiting(MODEL), 0, -1) == [job_id.encode()]


def test_line_that_empties_while_it_is_counted_has_lost_no_wakeups(
    client: Client, admissions: AdmissionStore, leases: LeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, backlog = admit(admissions), BacklogStore(client)
    count = backlog._tend_line

    def and_then_it_is_claimed(**arguments: object) -> object:
        counted = count(**arguments)  # type: ignore[arg-type]
        assert leases.claim(job_id, MODEL, W1) is not None
        return counted

    monkeypatch.setattr(backlog, "_tend_line", and_then_it_is_claimed)
    assert backlog.lost() == []


def test_dead_letters_beyond_the_bound_are_forgotten_first(
    client: Client, jobs: JobStore, admissions: AdmissionStore, lists: JobLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.backlog_store.MAX_DEAD_LETTERS", 1)
    old, new = admit(admissions), admit(admissions)
    jobs.end_waiting(old, JobState.FAILED, BROKEN)
    client.zadd(keys.DEAD, {old: 5_000})
    jobs.end_waiting(new, JobState.FAILED, BROKEN)
    hour_ms = 3_600_000
    assert BacklogStore(client).trim_dead(older_than_ms=9_999_999_999_999, retention_ms=hour_ms) == 1
    assert [job.id for job in lists.dead(10)] == [new]
    assert client.pttl(keys.job(old)) <= hour_ms < client.pttl(keys.job(new))
    assert BacklogStore(client).trim_dead(older_than_ms=-1_000, retention_ms=hour_ms) == 0
    assert lists.dead(10) == []


def test_idempotency_key_of_a_record_that_is_gone_is_free_again(client: Client, admissions: AdmissionStore) -> None:
    first = admit(admissions, idempotency_key="k")
    client.delete(keys.job(first))
    assert admit(admissions, idempotency_key="k") != first


def test_parked_attempts_do_not_count_as_broken(jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore) -> None:
    job_id = admit(admissions)
    for number in range(1, 6):
        assert leases.claim(job_id, MODEL, W1) is not None
        assert leases.release(job_id, number, failure=None) is not None
    assert jobs.get(job_id).state is JobState.QUEUED


def test_cancel_ends_a_waiting_job_and_flags_a_running_one(
    client: Client, jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore, writer: TokenWriter
) -> None:
    waiting, running = admit(admissions), admit(admissions)
    leases.claim(running, MODEL, W1)
    assert jobs.cancel(waiting).state is JobState.CANCELLED
    assert leases.claim(waiting, MODEL, W1) is None
    job = jobs.cancel(running)
    assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)
    assert leases.renew([(running, 1)]) == [Verdict.CANCEL]
    assert writer.append([tokens(running, 1, 1)]) == [Verdict.CANCEL]


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.EXPIRED])
def test_job_that_ends_just_when_it_was_handed_over_leaves_no_line_behind(
    client: Client, jobs: JobStore, admissions: AdmissionStore, monkeypatch: pytest.MonkeyPatch, state: JobState
) -> None:
    job_id, end = admit(admissions), jobs._end_unclaimed

    def after_a_hand_over(**arguments: object) -> object:
        assert jobs.hand_over(job_id, MODEL, "fallback") is not None
        return end(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "_end_unclaimed", after_a_hand_over)
    if state is JobState.CANCELLED:
        jobs.cancel(job_id)
    else:
        jobs.end_waiting(job_id, state, BROKEN)
    job = jobs.get(job_id)
    assert (job.state, job.model) == (state, "fallback")
    assert FleetStore(client).queues() == ()
    assert client.zcard(keys.QUEUED) == 0


@pytest.mark.parametrize("way", ["parked", "broken", "broken for the last time", "rescued"])
def test_job_that_is_to_be_cancelled_ends_where_it_would_go_back_to_the_queue(
    client: Client, store_settings: StoreSettings, jobs: JobStore, admissions: AdmissionStore, lists: JobLists, way: str
) -> None:
    max_attempts = 1 if way == "broken for the last time" else 3
    leases = LeaseStore(client, store_settings.model_copy(update={"max_attempts": max_attempts}))
    job_id = admit(admissions, deadline_ms=9_999_999_999_999)
    leases.claim(job_id, MODEL, W1)
    TokenWriter(client).append([tokens(job_id, 1, 1)])
    jobs.cancel(job_id)
    live = client.pubsub(ignore_subscribe_messages=True)
    live.subscribe(keys.live(job_id))
    live.get_message(timeout=4)
    if way == "rescued":
        expire_lease(client, job_id)
        assert leases.rescue(job_id, 1, W1) is None
    else:
        assert leases.release(job_id, 1, failure=None if way == "parked" else BROKEN) is None
    job = jobs.get(job_id)
    assert (job.state, job.error, job.last_seq) == (JobState.CANCELLED, None, 2)
    assert job.failures == (way != "parked")  # what broke is on record all the same
    for key in (keys.waiting(MODEL), keys.QUEUED, keys.RUNNING, keys.DEADLINES, keys.DEAD):
        assert client.zcard(key) == 0, key
    (_, told) = client.xrange(keys.stream(job_id))[-1]
    assert decode_numbered(told[b"e"]) == End(state=JobState.CANCELLED)
    assert live.get_message(timeout=4)["data"] == b"2 " + told[b"e"]
    live.close()
    assert 0 < client.pttl(keys.job(job_id)) <= store_settings.retention_s * 1000
    assert lists.recent(1).jobs == [job]


def test_nothing_is_left_behind_by_finished_jobs(
    client: Client, jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore
) -> None:
    finished, cancelled = (
        admit(admissions, deadline_ms=9_999_999_999_999),
        admit(admissions, deadline_ms=9_999_999_999_999),
    )
    leases.claim(finished, MODEL, W1)
    leases.finish(finished, 1, JobState.SUCCEEDED, result=JobResult(text="", finish_reason="stop", usage=None))
    jobs.cancel(cancelled)
    for key in (keys.waiting(MODEL), keys.QUEUED, keys.RUNNING, keys.DEADLINES):
        assert client.zcard(key) == 0, key


def test_unreachable_store_is_reported_as_unavailable(store_settings: StoreSettings) -> None:
    nowhere = store_settings.model_copy(update={"redis_url": "unix:///nonexistent/s.sock"})
    with pytest.raises(StoreUnavailable):
        JobStore(connect(nowhere), nowhere).get(JobId("job_0"))


def test_full_store_is_reported_as_unavailable(client: Client, admissions: AdmissionStore) -> None:
    assert isinstance(client, redis.Redis)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            admit(admissions)
    finally:
        client.config_set("maxmemory", 0)


def test_leases_of_a_dead_worker_end_and_no_others(admissions: AdmissionStore, leases: LeaseStore) -> None:
    orphan, other = admit(admissions), admit(admissions)
    leases.claim(orphan, MODEL, W1)
    leases.claim(other, MODEL, W2)
    assert leases.disown(W1) == 1
    assert leases.expired(10) == [(orphan, 1, W1)]
    assert leases.rescue(orphan, 1, W1) is not None
    assert leases.disown(W1) == 0


def test_only_jobs_that_have_ended_are_forgotten(
    jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore, client: Client
):
    running, ended = admit(admissions, idempotency_key="r"), admit(admissions, idempotency_key="e")
    leases.claim(running, MODEL, W1)
    leases.claim(ended, MODEL, W1)
    leases.finish(ended, 1, JobState.CANCELLED)
    jobs.cancel(running)  # flagged only
    admissions.forget({"r": running, "e": ended})
    assert client.pttl(keys.job(running)) == -1
    assert 0 < client.pttl(keys.job(ended)) <= FORGET_AFTER_MS
    assert 0 < client.pttl(keys.stream(ended)) <= FORGET_AFTER_MS
    assert admissions.of_keys(["r", "e"]) == [running, None]


def test_orphans_among_running_jobs_hide_no_lease_that_has_ended(
    admissions: AdmissionStore, leases: LeaseStore, client: Client
):
    job_id = admit(admissions)
    leases.claim(job_id, MODEL, W1)
    client.zadd(keys.RUNNING, {f"gone-{number}": number for number in range(5)} | {job_id: 10})
    assert leases.expired(2) == [(job_id, 1, W1)]
    assert client.zrange(keys.RUNNING, 0, -1) == [job_id.encode()]


def test_broken_connections_cost_no_job_its_admission_claim_or_end(
    client: Client, store_settings: StoreSettings, jobs: JobStore, admissions: AdmissionStore, leases: LeaseStore
):
    def break_connections() -> None:
        connect(store_settings).execute_command("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "yes")

    first = admit(admissions)
    leases.claim(first, MODEL, W1)
    break_connections()
    second = admit(admissions)
    break_connections()
    assert leases.claim(second, MODEL, W2) is not None
    break_connections()
    leases.finish(first, 1, JobState.SUCCEEDED, result=JobResult(text="", finish_reason="stop", usage=None))
    assert (jobs.get(first).state, jobs.get(second).state) == (JobState.SUCCEEDED, JobState.RUNNING)
    assert jobs.get(second).attempt == 1


def test_clients_of_a_shared_job_are_counted_once_each_when_replies_get_lost(jobs, admissions):
    key = AnswerKey(digest="d", fingerprint="f", ttl_ms=60_000, max_bytes=4096)
    wish = CacheWish(key=key, ends_with_clients=True, may_follow=True)
    job_id, twin = admit(admissions, wish=wish), new_job_id()
    for _ in range(2):
        again = admissions.admit(
            twin, request(), priority=Priority.DEFAULT, deadline_ms=None, idempotency_key=None, wish=wish
        )
        assert again.shared_with == job_id
    for _ in range(2):
        jobs.leave(job_id, twin)
        assert jobs.get(job_id).state is JobState.QUEUED
    for _ in range(2):
        jobs.leave(job_id, job_id)
        assert jobs.get(job_id).state is JobState.CANCELLED


def test_job_that_was_answered_from_the_cache_is_written_once_when_the_reply_gets_lost(jobs, admissions):
    job_id = new_job_id()
    answer = (Tokens(text="Hi", ids=(1,)), End(state=JobState.SUCCEEDED, finish_reason="stop"))
    for _ in range(2):
        assert admissions.write_answered(job_id, request(), answer, priority=Priority.DEFAULT)
    assert (jobs.get(job_id).last_seq, jobs.get(job_id).result.text) == (2, "Hi")


def test_jobs_are_read_without_their_requests(jobs, admissions, lists, client):
    job_id = admit(admissions)
    client.config_resetstat()
    whole = jobs.get(job_id)
    assert lists.get_many([job_id, new_job_id()]) == lists.recent(1).jobs == [whole]
    with pytest.raises(JobNotFound):
        jobs.get(new_job_id())
    assert "cmdstat_hgetall" not in client.info("commandstats")
    assert "request" not in FIELDS
