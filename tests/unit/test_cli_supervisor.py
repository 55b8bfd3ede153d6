"""The supervisor's decisions: no process is started and no time passes here."""

from __future__ import annotations

import errno

import pytest

from app.cli.processes import ProcessSpec, StopRank
from app.cli.supervisor import (
    ChildDied,
    ChildNotStarted,
    ChildStarted,
    ChildStopped,
    Supervisor,
    SupervisorEvent,
    backoff_s,
)


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class FakeProcess:
    """Lives until it is ended; `stubborn` ones ignore SIGTERM, the others take `stop_takes_s`."""

    def __init__(self, pid: int, time: FakeTime, *, stubborn: bool = False, stop_takes_s: float = 0.0) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self.terminated_at: float | None = None
        self.was_killed = False
        self._time = time
        self._stubborn = stubborn
        self._stop_takes_s = stop_takes_s

    def poll(self) -> int | None:
        is_asked = self.exit_code is None and self.terminated_at is not None and not self._stubborn
        if is_asked and self._time.now_s >= (self.terminated_at or 0) + self._stop_takes_s:
            self.exit_code = 0
        return self.exit_code

    def terminate(self) -> None:
        self.terminated_at = self._time.now_s

    def kill(self) -> None:
        if self.exit_code is None:
            self.was_killed = True
            self.exit_code = -9


class FakeLauncher:
    def __init__(self, time: FakeTime, **behaviour: dict) -> None:
        self.time = time
        self.behaviour = behaviour
        self.launched: list[tuple[str, FakeProcess]] = []
        self.refusal: OSError | None = None

    def launch(self, spec: ProcessSpec) -> FakeProcess:
        if self.refusal is not None:
            raise self.refusal
        process = FakeProcess(100 + len(self.launched), self.time, **self.behaviour.get(spec.name, {}))
        self.launched.append((spec.name, process))
        return process

    def newest(self, name: str) -> FakeProcess:
        return [process for launched, process in self.launched if launched == name][-1]


class Stage:
    def __init__(self, **behaviour: dict) -> None:
        self.time = FakeTime()
        self.launcher = FakeLauncher(self.time, **behaviour)
        self.events: list[SupervisorEvent] = []
        self.supervisor = Supervisor(
            self.launcher, report=self.events.append, clock=self.time.clock, sleep=self.time.sleep
        )

    def start(self, name: str, rank: StopRank = StopRank.FRONT, bound_s: float = 5.0) -> FakeProcess:
        self.supervisor.start(ProcessSpec(name=name, argv=("true",), stop_rank=rank, stop_bound_s=bound_s))
        return self.launcher.newest(name)

    def tick_after(self, seconds: float) -> None:
        self.time.sleep(seconds)
        self.supervisor.tick()

    def last(self) -> SupervisorEvent:
        return self.events[-1]

    def of_kind(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def test_pauses_double_up_to_thirty_seconds():
    assert [backoff_s(deaths) for deaths in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff_s(10_000) == 30


def test_a_dead_child_is_started_again_after_its_pause_and_not_before():
    stage = Stage()
    stage.start("api").exit_code = -11
    stage.tick_after(5)
    assert stage.last() == ChildDied("api", -11, 1.0)
    stage.tick_after(0.9)
    assert len(stage.launcher.launched) == 1
    stage.tick_after(0.2)
    assert stage.last() == ChildStarted("api", 101, is_restart=True)
    assert stage.supervisor.is_alive("api")


def test_a_child_that_keeps_dying_waits_longer_each_time():
    stage = Stage()
    stage.start("worker")
    for _ in range(4):
        stage.launcher.newest("worker").exit_code = 1
        stage.tick_after(0)
        stage.tick_after(30)
    assert [event.restart_in_s for event in stage.of_kind(ChildDied)] == [1, 2, 4, 8]
    assert stage.supervisor.deaths("worker") == 4


def test_a_minute_of_life_forgives_earlier_deaths():
    stage = Stage()
    stage.start("worker").exit_code = 1
    stage.tick_after(0)
    stage.tick_after(1)
    stage.time.sleep(61)
    stage.launcher.newest("worker").exit_code = 1
    stage.tick_after(0)
    assert [event.restart_in_s for event in stage.of_kind(ChildDied)] == [1, 1]


def test_a_wrong_setting_is_not_tried_again():
    stage = Stage()
    stage.start("worker").exit_code = 2
    stage.tick_after(0)
    stage.tick_after(3600)
    assert stage.last() == ChildDied("worker", 2, None)
    assert stage.supervisor.has_given_up("worker")
    assert len(stage.launcher.launched) == 1


def test_a_start_that_the_system_refuses_is_tried_again_like_a_death_and_the_others_live_on():
    stage = Stage()
    other = stage.start("store")
    stage.start("api").exit_code = -9
    stage.tick_after(5)
    stage.launcher.refusal = OSError(errno.EMFILE, "Too many open files")
    stage.tick_after(1)
    assert stage.last() == ChildNotStarted("api", "[Errno 24] Too many open files", 2.0)
    stage.tick_after(1.9)
    assert len(stage.of_kind(ChildNotStarted)) == 1
    stage.tick_after(0.2)
    assert stage.last() == ChildNotStarted("api", "[Errno 24] Too many open files", 4.0)
    assert not stage.supervisor.has_given_up("api")
    stage.launcher.refusal = None
    stage.tick_after(4)
    assert stage.last() == ChildStarted("api", 102, is_restart=True)
    assert other.exit_code is None


def test_a_first_start_that_the_system_refuses_counts_as_a_death():
    stage = Stage()
    stage.launcher.refusal = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    stage.supervisor.start(ProcessSpec(name="store", argv=("true",), stop_rank=StopRank.STORE, stop_bound_s=1))
    assert stage.supervisor.deaths("store") == 1
    stage.supervisor.stop(is_impatient=lambda: False)
    assert stage.of_kind(ChildStopped) == []


def test_what_a_dead_child_left_behind_is_killed_before_the_next_start():
    stage = Stage()
    killed: list[int] = []
    process = stage.start("worker")
    process.kill = lambda: killed.append(process.pid)  # type: ignore[method-assign]
    process.exit_code = -9
    stage.tick_after(0)
    assert killed == [process.pid]


def test_workers_end_first_and_the_store_last():
    stage = Stage(worker={"stop_takes_s": 3.0}, api={"stop_takes_s": 1.0})
    for name, rank in (
        ("store", StopRank.STORE),
        ("worker", StopRank.WORKER),
        ("controller", StopRank.CONTROLLER),
        ("api", StopRank.FRONT),
        ("flower", StopRank.FRONT),
    ):
        stage.start(name, rank, bound_s=10)
    stage.supervisor.stop(is_impatient=lambda: False)
    stopped = [event.name for event in stage.of_kind(ChildStopped)]
    assert stopped == ["worker", "flower", "api", "controller", "store"]
    assert not any(event.was_killed for event in stage.of_kind(ChildStopped))
    worker, api = stage.launcher.newest("worker"), stage.launcher.newest("api")
    assert api.terminated_at is not None
    assert worker.terminated_at is not None
    assert api.terminated_at >= worker.terminated_at + 3


def test_who_does_not_end_in_time_is_killed():
    stage = Stage(worker={"stubborn": True})
    worker = stage.start("worker", StopRank.WORKER, bound_s=13)
    began = stage.time.now_s
    stage.supervisor.stop(is_impatient=lambda: False)
    assert worker.was_killed
    assert stage.time.now_s - began == pytest.approx(13, abs=0.2)
    assert stage.last() == ChildStopped("worker", was_killed=True)


def test_impatience_kills_all_at_once():
    stage = Stage(worker={"stubborn": True}, store={"stubborn": True})
    stage.start("worker", StopRank.WORKER, bound_s=13)
    stage.start("store", StopRank.STORE, bound_s=5)
    began = stage.time.now_s
    stage.supervisor.stop(is_impatient=lambda: True)
    assert stage.time.now_s == began
    assert [event.was_killed for event in stage.of_kind(ChildStopped)] == [True, True]


def test_a_child_that_waits_for_its_restart_is_not_started_by_a_stop():
    stage = Stage()
    stage.start("api").exit_code = 1
    stage.tick_after(0)
    stage.supervisor.stop(is_impatient=lambda: False)
    stage.tick_after(60)
    assert len(stage.launcher.launched) == 1
