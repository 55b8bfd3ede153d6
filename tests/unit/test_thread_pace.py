"""The number of threads, against a machine whose steps take what the test says."""

from __future__ import annotations

import pytest

from workers.engine.thread_pace import FORGOTTEN_S, LAST_PAUSE_S, ThreadPace

# Milliseconds of a step on two cores, by threads: measured with a model of 489 M parameters.
QUIET = {1: 32.0, 2: 20.0}
BUSY = {1: 40.0, 2: 130.0}  # beside one thread of another program


class Machine:
    def __init__(self, most: int = 2) -> None:
        self.now_s = 100.0
        self.pace = ThreadPace(most, lambda: self.now_s)
        self.most = most

    def step(self, cost_ms: dict[int, float], *, tokens: int = 1, granted: int | None = None) -> int:
        granted = granted or self.most
        threads = self.pace.threads(tokens, granted)
        seconds = cost_ms[threads] / 1000
        self.now_s += seconds
        self.pace.measured(tokens, threads, granted, seconds)
        return threads

    def run(self, cost_ms: dict[int, float], seconds: float, **options: int) -> list[int]:
        end_s, taken = self.now_s + seconds, []
        while self.now_s < end_s:
            taken.append(self.step(cost_ms, **options))
        return taken


def test_quiet_machine_gets_all_threads_in_every_step() -> None:
    assert set(Machine().run(QUIET, 20)) == {2}


def test_busy_machine_gets_fewer_threads_and_loses_little_to_trials() -> None:
    machine = Machine()
    machine.run(QUIET, 5)
    before = machine.run(BUSY, 1)
    assert before.count(2) <= 6
    lasting = machine.run(BUSY, 60)
    lost_s = lasting.count(2) * (BUSY[2] - BUSY[1]) / 1000
    assert lost_s < 0.05 * 60


def test_all_threads_come_back_soon_after_the_machine_is_quiet_again() -> None:
    machine = Machine()
    machine.run(QUIET, 5)
    machine.run(BUSY, 30)
    machine.run(QUIET, LAST_PAUSE_S + 0.1)
    assert set(machine.run(QUIET, 5)) == {2}


def test_single_slow_step_changes_nothing() -> None:
    machine = Machine()
    for _ in range(20):
        machine.run(QUIET, 0.5)
        assert machine.step(BUSY) == 2
    assert set(machine.run(QUIET, 5)) == {2}


def test_steps_that_grow_with_their_context_are_not_taken_for_slow_ones() -> None:
    machine = Machine()
    taken = [
        machine.step({threads: ms * (1 + number / 1000) for threads, ms in QUIET.items()}) for number in range(3000)
    ]
    assert taken.count(1) <= 3


def test_what_is_slow_for_another_reason_stays_with_all_threads() -> None:
    machine = Machine()
    machine.run(QUIET, 5)
    slower = {threads: 3 * ms for threads, ms in QUIET.items()}
    assert machine.run(slower, 30).count(1) <= 8


def test_prompts_are_read_as_small_steps_turned_out_best() -> None:
    machine = Machine()
    machine.run(QUIET, 1)
    machine.run(BUSY, 2)
    assert machine.step({1: 500.0, 2: 900.0}, tokens=400) == 1
    machine.now_s += FORGOTTEN_S + 1
    assert machine.step({1: 500.0, 2: 300.0}, tokens=400) == 2


@pytest.mark.parametrize("busy", [1, 2, 3])
def test_of_many_threads_as_many_leave_as_others_compute(busy: int) -> None:
    def cost(busy: int) -> dict[int, float]:
        return {n: 100.0 / n * (4 if n + busy > 8 else 1) for n in range(1, 9)}

    machine = Machine(most=8)
    machine.run(cost(0), 2)
    machine.run(cost(busy), 10)
    taken = machine.run(cost(busy), 20)
    assert max(set(taken), key=taken.count) == 8 - busy
    machine.run(cost(0), 20)
    assert set(machine.run(cost(0), 2)) == {8}


def test_never_more_than_granted() -> None:
    machine = Machine()
    machine.run(QUIET, 1)
    assert set(machine.run(QUIET, 1, granted=1)) == {1}
    assert set(machine.run(QUIET, 1)) == {2}
