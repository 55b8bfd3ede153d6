"""When a runner counts as stalled, and what its death is called."""

from __future__ import annotations

import signal

import pytest

from tasks.errors import ModelLoadBroken, RunnerStalled
from tests.support.scripted_runner import ManualClock
from workers.watchdog import Watchdog

STALL_S = 30.0
LOAD_STALL_S = 60.0


class Kennel:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.oom_kills = 3  # the kernel's counter, as it stands at the start
        self.dog = Watchdog(
            model="m",
            stall_s=STALL_S,
            load_stall_s=LOAD_STALL_S,
            monotonic_s=self.clock.clock().monotonic_s,
            oom_kills=lambda: self.oom_kills,
        )

    def stall_with_work_since(self, busy_since_s: float | None) -> Exception | None:
        return self.dog.find_stall(is_loaded=True, busy_since_s=busy_since_s)

    def stall_while_loading(self) -> Exception | None:
        return self.dog.find_stall(is_loaded=False, busy_since_s=None)


@pytest.fixture
def kennel() -> Kennel:
    return Kennel()


def test_silence_with_work_is_a_stall_once_it_is_too_long(kennel: Kennel) -> None:
    start_s = kennel.clock.seconds
    kennel.clock.advance(STALL_S)
    assert kennel.stall_with_work_since(start_s) is None
    kennel.clock.advance(1)
    assert isinstance(kennel.stall_with_work_since(start_s), RunnerStalled)


def test_silence_without_work_is_none(kennel: Kennel) -> None:
    kennel.clock.advance(1000)
    assert kennel.stall_with_work_since(None) is None


def test_silence_counts_from_the_first_work_on(kennel: Kennel) -> None:
    kennel.clock.advance(1000)
    begin_s = kennel.clock.seconds
    assert kennel.stall_with_work_since(begin_s) is None
    kennel.clock.advance(STALL_S + 1)
    stall = kennel.stall_with_work_since(begin_s)
    assert isinstance(stall, RunnerStalled)
    assert "31 s" in str(stall)


def test_every_sign_starts_the_silence_anew(kennel: Kennel) -> None:
    start_s = kennel.clock.seconds
    kennel.clock.advance(STALL_S)
    kennel.dog.note_sign()
    kennel.clock.advance(STALL_S)
    assert kennel.stall_with_work_since(start_s) is None


def test_load_has_a_patience_of_its_own_and_says_how_far_it_came(kennel: Kennel) -> None:
    kennel.dog.note_progress(0.25)
    kennel.clock.advance(LOAD_STALL_S)
    assert kennel.stall_while_loading() is None
    kennel.clock.advance(1)
    stall = kennel.stall_while_loading()
    assert isinstance(stall, ModelLoadBroken)  # tried again: a disk that hangs says nothing against the file
    assert "no progress for 61 s at 25%" in str(stall)


def test_progress_never_goes_back_nor_beyond_the_end(kennel: Kennel) -> None:
    seen = []
    for fraction in (0.5, 0.25, 1.5):
        kennel.dog.note_progress(fraction)
        seen.append(kennel.dog.progress)
    assert seen == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("kills", "code", "expected"),
    [
        (4, -signal.SIGKILL, "runner_out_of_memory"),
        (3, -signal.SIGKILL, "runner_crashed"),  # somebody else's SIGKILL
        (4, -signal.SIGSEGV, "runner_crashed"),  # another process ran out of memory meanwhile
        (4, None, "runner_crashed"),  # it could not even be killed
    ],
)
def test_out_of_memory_is_told_from_a_crash(kennel: Kennel, kills: int, code: int | None, expected: str) -> None:
    kennel.oom_kills = kills
    assert kennel.dog.cause_of_death(code, is_loaded=True).code == expected


def test_death_before_the_model_is_loaded_is_a_broken_load(kennel: Kennel) -> None:
    cause = kennel.dog.cause_of_death(-signal.SIGSEGV, is_loaded=False)
    assert isinstance(cause, ModelLoadBroken)
    assert "exit code -11" in str(cause)
