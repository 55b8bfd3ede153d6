"""A runner's states and places, and who hears of their changes."""

from __future__ import annotations

import pytest

from tasks.fleet import RunnerReport, RunnerState
from tasks.jobs import Priority
from tests.support.scripted_runner import Changes, ManualClock
from workers.runner_lifecycle import RunnerLifecycle


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.changes = Changes()
        self.life = RunnerLifecycle(slots=2, clock=self.clock.clock(), on_change=self.changes)

    def report(self) -> RunnerReport:
        return self.life.report(pid=1, model="m", bytes_held=7, progress=0.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def ready(bench: Bench) -> Bench:
    assert bench.life.open()
    return bench


def test_places_are_to_be_had_in_a_ready_runner_only(bench: Bench) -> None:
    seen = []
    for change in (lambda: None, bench.life.open, bench.life.drain, lambda: bench.life.end(RunnerState.STOPPED)):
        change()
        seen.append((bench.life.state, bench.life.room(Priority.DEFAULT), bench.life.take_place(Priority.DEFAULT)))
    assert seen == [
        (RunnerState.STARTING, 0, False),
        (RunnerState.READY, 2, True),
        (RunnerState.DRAINING, 0, False),
        (RunnerState.STOPPED, 0, False),
    ]


def test_change_is_told_when_places_run_out_and_come_back(ready: Bench) -> None:
    counts = [ready.changes.count]
    for _ in range(2):
        assert ready.life.take_place(Priority.DEFAULT)
        counts.append(ready.changes.count)
    for _ in range(2):
        ready.life.give_back_place(Priority.DEFAULT)
        counts.append(ready.changes.count)
    assert [count - counts[0] for count in counts] == [0, 0, 1, 2, 2]


def test_place_that_comes_back_to_a_draining_runner_is_nobodys_news(ready: Bench) -> None:
    for _ in range(2):
        assert ready.life.take_place(Priority.DEFAULT)
    ready.life.drain()
    before = ready.changes.count
    ready.life.give_back_place(Priority.DEFAULT)
    assert ready.changes.count == before


def test_runner_that_shall_stop_never_opens(bench: Bench) -> None:
    bench.life.stop_wanted.set()
    assert not bench.life.open()
    assert bench.life.state is RunnerState.STARTING


def test_only_a_ready_runner_drains_and_it_does_so_once(bench: Bench) -> None:
    seen = []
    for change in (bench.life.drain, bench.life.open, bench.life.drain, bench.life.drain, bench.life.open):
        change()
        seen.append(bench.life.state)
    assert seen == [RunnerState.STARTING, RunnerState.READY, *[RunnerState.DRAINING] * 3]
    assert bench.changes.count == 3  # two opens, of which one did nothing, and one drain


def test_runner_that_is_gone_never_comes_back(ready: Bench) -> None:
    ready.life.end(RunnerState.CRASHED)
    assert not ready.life.open()
    with pytest.raises(AssertionError, match="never goes from crashed to stopped"):
        ready.life.end(RunnerState.STOPPED)


def test_it_is_idle_without_places_taken_and_since_the_last_came_back(ready: Bench) -> None:
    opened_ms = ready.report().since_ms
    assert ready.life.wait_idle(0)
    ready.life.take_place(Priority.BATCH)
    assert not ready.life.wait_idle(0)
    assert ready.report().idle_since_ms is None
    assert (ready.report().in_flight, ready.report().batch_in_flight) == (1, 1)
    ready.clock.advance(3)
    ready.life.give_back_place(Priority.BATCH)
    assert ready.life.wait_idle(0)
    assert (ready.report().since_ms, ready.report().idle_since_ms) == (opened_ms, opened_ms + 3000)


def test_its_end_is_known_at_once_and_told_when_all_is_settled(ready: Bench) -> None:
    ready.life.take_place(Priority.DEFAULT)  # and never used
    before = ready.changes.count
    ready.life.end(RunnerState.CRASHED)
    assert (ready.life.state, ready.life.is_settled, ready.changes.count) == (RunnerState.CRASHED, False, before)
    assert not ready.life.wait_idle(0)
    ready.life.settle()
    assert ready.life.wait_settled(0)
    assert ready.life.wait_idle(0)
    assert ready.changes.count == before + 1
