"""How a runner ends, and what becomes of its work: parked, stopped, crashed, stalled, never loaded."""

from __future__ import annotations

import gc
import signal
import weakref

import pytest

from tasks.errors import ModelLoadFailed
from tasks.fleet import RunnerState
from tasks.jobs import JobId, Priority
from tasks.ports import Cancelled, Failed, Finished, Parked
from tests.support.runner_bench import RunnerBench
from tests.support.scripted_runner import make_attempt
from workers.messages import Fatal, LoadFailed, Shutdown, TokenOut


def test_parking_stops_all_sequences_and_keeps_their_tokens(ready: RunnerBench) -> None:
    running, key = ready.run()
    ready.link.step(TokenOut(key, "abc", (1,)))
    ready.runner.begin_drain()
    assert ready.runner.state is RunnerState.DRAINING
    assert not ready.runner.wait_idle(0)
    ready.runner.park_all()
    assert running.outcome() == Parked()
    assert ready.sink.text_of("job_1") == "abc"
    assert ready.runner.wait_idle(10)


def test_slot_taken_before_a_drain_and_used_after_parking_is_parked(ready: RunnerBench) -> None:
    slot = ready.slot()
    ready.runner.begin_drain()
    ready.runner.park_all()
    assert slot.run(make_attempt()) == Parked()
    assert ready.link.sent == []


def test_draining_runner_takes_no_new_work(ready: RunnerBench) -> None:
    ready.runner.begin_drain()
    assert ready.runner.take_slot(Priority.DEFAULT) is None


def test_crash_makes_every_attempt_retryable_at_once(ready: RunnerBench) -> None:
    (one, _), (two, _) = ready.run("job_1"), ready.run("job_2")
    ready.link.exit(-signal.SIGSEGV)
    for running in (one, two):
        outcome = running.outcome()
        assert isinstance(outcome, Failed)
        assert outcome.is_retryable
        assert outcome.error.code == "runner_crashed"
        assert "-11" in outcome.error.message
    assert ready.runner.state is RunnerState.CRASHED
    assert ready.runner.in_flight == 0


def test_last_words_of_a_runner_are_the_reason_that_is_told(ready: RunnerBench) -> None:
    running, _ = ready.run()
    ready.link.say(Fatal("The model produced NaN."))
    ready.link.exit(4)
    outcome = running.outcome()
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.is_retryable) == ("runner_crashed", True)
    assert outcome.error.message == "The runner of 'm' broke down: The model produced NaN."


def test_kill_by_the_kernel_for_want_of_memory_is_told_as_such(ready: RunnerBench) -> None:
    running, _ = ready.run()
    ready.oom_kills += 1
    ready.link.exit(-signal.SIGKILL)
    outcome = running.outcome()
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.is_retryable) == ("runner_out_of_memory", True)


def test_tokens_that_arrived_before_a_crash_are_published(ready: RunnerBench) -> None:
    running, key = ready.run()
    ready.link.step(TokenOut(key, "abc", (1,)))
    ready.link.exit(1)
    assert isinstance(running.outcome(), Failed)
    assert ready.sink.text_of("job_1") == "abc"


def test_cancelled_attempt_stays_cancelled_when_the_runner_dies_first(ready: RunnerBench) -> None:
    ready.link.is_deaf = True
    running, _ = ready.run()
    ready.runner.cancel(JobId("job_1"))
    ready.link.exit(-9)
    assert isinstance(running.outcome(), Cancelled)


def test_slot_of_a_dead_runner_gives_a_retryable_failure(ready: RunnerBench) -> None:
    slot = ready.slot()
    ready.link.exit(-9)
    assert ready.runner.wait_gone(10)
    outcome = slot.run(make_attempt())
    assert isinstance(outcome, Failed)
    assert outcome.is_retryable


def test_work_of_a_runner_that_is_stopped_on_purpose_is_parked(ready: RunnerBench) -> None:
    running, _ = ready.run()
    slot = ready.slot()
    ready.runner.stop(10)
    assert running.outcome() == Parked()
    assert slot.run(make_attempt("job_2")) == Parked()


def test_death_during_the_load_is_a_failed_load(bench: RunnerBench) -> None:
    bench.link.exit(-9)
    with pytest.raises(ModelLoadFailed, match="exit code -9"):
        bench.runner.wait_loaded()


def test_silence_during_work_is_a_stall(ready: RunnerBench) -> None:
    running, _ = ready.run()
    ready.clock.advance(31)
    ready.link.tick()
    outcome = running.outcome()
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "runner_stalled"
    assert outcome.is_retryable
    assert ready.runner.state is RunnerState.CRASHED


def test_work_of_a_process_that_can_not_even_be_killed_is_given_up(ready: RunnerBench) -> None:
    ready.link.is_unkillable = True
    running, _ = ready.run()
    ready.clock.advance(31)
    ready.link.tick()
    assert ready.link.was_killed.wait(10)
    ready.clock.advance(5)
    ready.link.tick()
    outcome = running.outcome()
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "runner_stalled"


def test_silence_without_work_is_no_stall(ready: RunnerBench) -> None:
    ready.clock.advance(1000)
    ready.link.tick()
    running, key = ready.run()
    ready.link.tick()
    ready.link.finish(key)
    assert isinstance(running.outcome(), Finished)


def test_failed_load_carries_the_reason(bench: RunnerBench) -> None:
    bench.link.say(LoadFailed("unknown architecture"))
    bench.link.exit(3)
    with pytest.raises(ModelLoadFailed, match="unknown architecture"):
        bench.runner.wait_loaded()
    assert bench.runner.wait_gone(10)
    assert bench.runner.state is RunnerState.CRASHED


def test_load_without_progress_is_killed(bench: RunnerBench) -> None:
    bench.clock.advance(61)
    bench.link.tick()
    with pytest.raises(ModelLoadFailed, match="no progress"):
        bench.runner.wait_loaded()
    assert bench.link.exit_code() == -signal.SIGKILL


def test_idle_runner_is_asked_to_exit(ready: RunnerBench) -> None:
    ready.runner.stop(10)
    assert ready.link.await_sent(Shutdown)
    assert ready.runner.state is RunnerState.STOPPED
    assert ready.runner.failure is None


def test_runner_that_ignores_shutdown_is_killed(ready: RunnerBench) -> None:
    ready.link.is_deaf = True
    ready.runner.stop(0)
    assert ready.runner.wait_gone(10)
    assert ready.link.exit_code() == -signal.SIGKILL
    assert ready.runner.state is RunnerState.STOPPED


def test_loading_runner_is_killed_when_stopped(bench: RunnerBench) -> None:
    bench.runner.stop(10)
    assert bench.runner.state is RunnerState.STOPPED
    with pytest.raises(ModelLoadFailed):
        bench.runner.wait_loaded()


def test_runner_that_was_stopped_while_loading_never_opens(bench: RunnerBench) -> None:
    bench.link.load()
    bench.runner.wait_loaded()
    bench.runner.stop(10)
    assert not bench.runner.open()


def test_stop_does_not_wait_for_a_store_that_is_away(ready: RunnerBench) -> None:
    ready.sink.failures_left = 1000
    running, key = ready.run()
    ready.link.step(TokenOut(key, "abc", (1,)))
    assert ready.sink.await_calls(1)
    ready.runner.stop(10)
    outcome = running.outcome()
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.is_retryable) == ("store_unavailable", True)


def test_runner_that_has_ended_takes_no_memory_until_the_next_garbage_collection() -> None:
    bench = RunnerBench()
    bench.open()
    running, key = bench.run()
    bench.link.finish(key)
    assert isinstance(running.outcome(), Finished)
    bench.close()
    reader = bench.runner._reader._thread
    reader.join(10)
    parts = [weakref.ref(part) for part in (bench.runner, bench.runner._reader, bench.runner._flights, reader)]
    gc.disable()
    try:
        del bench.runner, running, reader
        assert [part() for part in parts] == [None] * 4
    finally:
        gc.enable()
