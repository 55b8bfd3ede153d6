"""The parent handle of a runner at work: slots, batches and their outcomes, against a scripted process."""

from __future__ import annotations

import signal

from tasks.fleet import RunnerState
from tasks.jobs import JobError, JobId, Priority
from tasks.ports import Cancelled, Failed, Finished, Lost, Parked
from tasks.store.token_writer import Chunk
from tasks.store.verdict import Verdict
from tasks.stream_events import Tokens
from tests.support.runner_bench import RunnerBench
from tests.support.scripted_runner import Running, make_attempt
from workers.messages import Cancel, Done, LoadProgress, Rejected, Step, TokenOut


def test_runner_is_ready_only_when_its_owner_opens_it(bench: RunnerBench) -> None:
    bench.link.say(LoadProgress(0.5))
    bench.link.load()
    assert bench.runner.wait_loaded().slots == 2
    assert bench.runner.report(7).state is RunnerState.STARTING
    assert bench.runner.take_slot(Priority.DEFAULT) is None
    assert bench.runner.open()
    assert bench.runner.report(7).state is RunnerState.READY


def test_the_first_output_is_waited_for_and_the_end_ends_that_too(ready: RunnerBench) -> None:
    _, key = ready.run()
    ready.link.say(Step(1, ()))
    assert not ready.runner.wait_answering(0)
    ready.link.say(Step(2, (TokenOut(key, "a", (1,)),)))
    assert ready.runner.wait_answering(10)


def test_who_waits_for_an_output_does_not_wait_for_a_dead_runner(ready: RunnerBench) -> None:
    assert not ready.runner.wait_answering(0)
    ready.link.exit(-signal.SIGKILL)
    assert ready.runner.wait_answering(10)


def test_slots_are_counted_and_come_back(ready: RunnerBench) -> None:
    first, second = ready.slot(), ready.slot()
    assert ready.runner.take_slot(Priority.DEFAULT) is None
    assert ready.runner.free_slots == 0
    first.give_back()
    first.give_back()
    assert ready.runner.in_flight == 1
    second.give_back()
    assert ready.runner.in_flight == 0


def test_urgent_work_shares_the_places_of_batch_work_and_of_nothing_else(ready: RunnerBench) -> None:
    before = ready.changes.count
    batch = [ready.runner.take_slot(Priority.BATCH) for _ in range(3)]
    assert [slot is not None for slot in batch] == [True, True, False]
    assert (ready.runner.free_slots, ready.runner.urgent_slots) == (0, 2)
    running = Running(ready.slot(), make_attempt("job_2"))
    assert ready.link.await_generate().priority is Priority.DEFAULT
    urgent = ready.runner.take_slot(Priority.INTERACTIVE)
    assert urgent is not None
    assert ready.runner.take_slot(Priority.INTERACTIVE) is None
    assert ready.runner.in_flight == 4
    assert ready.changes.count == before + 2  # closed to batch work, closed
    urgent.give_back()
    ready.link.finish(1)
    running.outcome()
    assert (ready.runner.free_slots, ready.runner.urgent_slots) == (0, 2)
    assert ready.changes.count == before + 3


def test_attempt_is_published_and_finished_with_the_whole_text(ready: RunnerBench) -> None:
    running, key = ready.run(last_seq=4, emitted_text="Once ", forced_ids=(7,))
    ready.link.step(TokenOut(key, "upon", (8,)))
    ready.link.finish(key)
    outcome = running.outcome()
    assert isinstance(outcome, Finished)
    assert (outcome.text, outcome.finish_reason) == ("Once upon", "stop")
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (3, 2)
    assert [chunk.seq for chunk in ready.sink.chunks] == [5]
    assert ready.runner.in_flight == 0


def test_forced_prefix_travels_to_the_runner(ready: RunnerBench) -> None:
    running, key = ready.run(emitted_text="Once ", forced_ids=(7, 9), last_seq=1)
    message = ready.link.await_generate()
    assert (message.forced_ids, message.emitted_text) == ((7, 9), "Once ")
    ready.link.finish(key)
    running.outcome()


def test_everything_read_at_once_is_one_batch_with_one_chunk_per_sequence(ready: RunnerBench) -> None:
    (one, key_1), (two, key_2) = ready.run("job_1"), ready.run("job_2")
    ready.link.say(
        Step(1, (TokenOut(key_1, "a", (1,)), TokenOut(key_2, "x", (2,)))),
        Step(2, (TokenOut(key_1, "b", (3,)), TokenOut(key_2, "y", (4,)))),
    )
    assert ready.sink.await_calls(1)
    ready.link.finish(key_1)
    ready.link.finish(key_2)
    first, second = one.outcome(), two.outcome()
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert (first.text, second.text) == ("ab", "xy")
    assert ready.sink.calls == [2]
    assert [chunk.event for chunk in ready.sink.chunks] == [Tokens("ab", (1, 3)), Tokens("xy", (2, 4))]


def test_last_words_of_a_sequence_that_ended_go_out_with_its_end(ready: RunnerBench) -> None:
    (one, key_1), (two, key_2) = ready.run("job_1"), ready.run("job_2")
    ready.link.say(
        Step(1, (TokenOut(key_1, "a", (1,)), TokenOut(key_2, "x", (2,)))),
        Step(
            2, (TokenOut(key_1, "b", (3,)), Done(key=key_1, finish_reason="stop", prompt_tokens=1, completion_tokens=2))
        ),
    )
    outcome = one.outcome()
    assert isinstance(outcome, Finished)
    assert outcome.text == "ab"
    assert outcome.tail == Chunk(JobId("job_1"), 1, 1, Tokens("ab", (1, 3)))
    assert ready.sink.await_calls(1)
    assert ready.sink.calls == [1]  # only the sequence that goes on
    assert ready.runner.cancel(JobId("job_2"))
    ready.link.finish(key_2, None)
    assert isinstance(two.outcome(), Cancelled)


def test_words_of_a_sequence_that_was_stopped_are_published_before_its_outcome(ready: RunnerBench) -> None:
    running, key = ready.run()
    ready.link.say(
        Step(1, (TokenOut(key, "a", (1,)), Done(key=key, finish_reason=None, prompt_tokens=1, completion_tokens=1)))
    )
    assert isinstance(running.outcome(), Parked)  # also when nobody asked for it
    assert ready.sink.text_of("job_1") == "a"


def test_tokens_that_arrive_during_a_slow_publish_wait_for_the_next_chunk(ready: RunnerBench) -> None:
    running, key = ready.run()
    ready.sink.gate.clear()
    ready.link.step(TokenOut(key, "a", (1,)))
    assert ready.sink.has_called.wait(10)
    ready.link.step(TokenOut(key, "b", (2,)))
    ready.link.finish(key)
    assert not running.is_over
    ready.sink.gate.set()
    running.outcome()
    assert ready.sink.text_of("job_1") == "ab"
    assert [chunk.seq for chunk in ready.sink.chunks] == [1, 2]


def test_rejected_request_fails_for_good(ready: RunnerBench) -> None:
    running, key = ready.run()
    error = JobError(code="context_length_exceeded", message="too long")
    ready.link.say(Rejected(key=key, error=error))
    assert running.outcome() == Failed(error=error, is_retryable=False)
    assert ready.runner.in_flight == 0


def test_cancel_ends_the_attempt_with_the_text_so_far(ready: RunnerBench) -> None:
    running, key = ready.run()
    ready.link.step(TokenOut(key, "abc", (1,)))
    assert ready.runner.cancel(JobId("job_1"))
    outcome = running.outcome()
    assert isinstance(outcome, Cancelled)
    assert (outcome.text, outcome.is_expired) == ("abc", False)
    assert outcome.usage is not None


def test_cancel_verdict_of_the_store_ends_the_attempt(ready: RunnerBench) -> None:
    running, key = ready.run()
    ready.sink.verdicts["job_1"] = Verdict.CANCEL
    ready.link.step(TokenOut(key, "a", (1,)))
    outcome = running.outcome()
    assert isinstance(outcome, Cancelled)
    assert outcome.text == "a"
    assert ready.link.await_sent(Cancel) == [Cancel(key)]


def test_lost_verdict_stops_at_once_and_publishes_nothing_more(ready: RunnerBench) -> None:
    ready.link.is_deaf = True
    running, key = ready.run()
    ready.sink.verdicts["job_1"] = Verdict.LOST
    ready.link.step(TokenOut(key, "a", (1,)))
    assert running.outcome() == Lost()
    calls = len(ready.sink.calls)
    ready.link.step(TokenOut(key, "b", (2,)))
    ready.link.finish(key, None)
    assert ready.runner.wait_idle(10)
    assert len(ready.sink.calls) == calls
    assert ready.runner.running_attempts() == []


def test_newer_attempt_of_a_job_displaces_the_older_one(ready: RunnerBench) -> None:
    older, _ = ready.run("job_1", number=1)
    newer, key = ready.run("job_1", number=2)
    assert older.outcome() == Lost()
    ready.link.finish(key)
    assert isinstance(newer.outcome(), Finished)


def test_natural_end_wins_over_a_late_cancel(ready: RunnerBench) -> None:
    ready.link.is_deaf = True
    running, key = ready.run()
    ready.runner.cancel(JobId("job_1"))
    ready.link.finish(key, "stop")
    assert isinstance(running.outcome(), Finished)


def test_deadline_expires_a_running_attempt(ready: RunnerBench) -> None:
    running, _ = ready.run(deadline_ms=ready.clock.clock().now_ms() + 500)
    ready.clock.advance(1)
    ready.link.tick()
    outcome = running.outcome()
    assert isinstance(outcome, Cancelled)
    assert outcome.is_expired


def test_attempt_past_its_deadline_never_reaches_the_runner(ready: RunnerBench) -> None:
    outcome = ready.slot().run(make_attempt(deadline_ms=1))
    assert isinstance(outcome, Cancelled)
    assert outcome.is_expired
    assert ready.link.sent == []
    assert ready.runner.in_flight == 0


def test_steps_are_the_proof_of_life(ready: RunnerBench) -> None:
    running, key = ready.run()
    assert [attempt.steps for attempt in ready.runner.running_attempts()] == [0]
    ready.link.say(Step(1, ()), Step(2, (TokenOut(key, "a", (1,)),)))
    assert ready.sink.has_called.wait(10)
    assert [attempt.steps for attempt in ready.runner.running_attempts()] == [2]
    ready.link.finish(key)
    running.outcome()


def test_long_store_outage_makes_the_attempt_retryable(ready: RunnerBench) -> None:
    running, key = ready.run()
    ready.sink.gate.clear()
    ready.sink.failures_left = 1000
    ready.link.step(TokenOut(key, "abc", (1,)))
    assert ready.sink.has_called.wait(10)
    ready.clock.advance(6)
    ready.sink.gate.set()
    outcome = running.outcome()
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.is_retryable) == ("store_unavailable", True)


def test_work_that_makes_steps_is_no_stall_however_long_it_takes(ready: RunnerBench) -> None:
    running, key = ready.run()
    for number in (1, 2):
        ready.clock.advance(20)
        ready.link.say(Step(number, (TokenOut(key, "a", (1,)),)))
        assert ready.sink.await_calls(number)
    ready.link.finish(key)
    assert isinstance(running.outcome(), Finished)
    assert ready.runner.failure is None
