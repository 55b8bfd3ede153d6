"""Keep a set of processes alive and end them in order. Knows neither Keepwarm nor the terminal.

A child that dies is started again after 1, 2, 4 … 30 s; a minute of life resets the count. A start that fails counts as
a death: a folder that is gone or a machine without room for a process must not end the others. Exit code 2 means that a
setting is wrong: starting again can't help. Everything happens in `tick` and `stop`, on one thread: the kernel ties
the death signal of a child to the thread that started it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from app.cli.processes import ProcessSpec

BACKOFF_FIRST_S = 1.0
BACKOFF_LONGEST_S = 30.0
STABLE_AFTER_S = 60.0
WRONG_SETTING_EXIT_CODE = 2
STOP_POLL_S = 0.05


# ---- what the supervisor reports


@dataclass(frozen=True, slots=True)
class ChildStarted:
    name: str
    pid: int
    is_restart: bool


@dataclass(frozen=True, slots=True)
class ChildDied:
    """`restart_in_s` None: it is not started again."""

    name: str
    exit_code: int  # negative: the signal
    restart_in_s: float | None


@dataclass(frozen=True, slots=True)
class ChildNotStarted:
    """The system refused to start it."""

    name: str
    reason: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class ChildStopped:
    """Ended on request; `was_killed`: it did not end within its bound."""

    name: str
    was_killed: bool


SupervisorEvent = ChildStarted | ChildDied | ChildNotStarted | ChildStopped


# ---- ports


class RunningProcess(Protocol):
    """A started child and everything that it started itself."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        ...

    def terminate(self) -> None: ...

    def kill(self) -> None:
        """End it and its descendants at once; harmless when it has ended already."""
        ...


class Launcher(Protocol):
    def launch(self, spec: ProcessSpec) -> RunningProcess:
        """Raises OSError when the system refuses."""
        ...


class _Child:
    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.process: RunningProcess | None = None
        self.started_at = 0.0
        self.deaths = 0  # in a row
        self.restart_at: float | None = None


class Supervisor:
    """Starts children, restarts the dead, stops all."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        report: Callable[[SupervisorEvent], None],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._launcher = launcher
        self._report = report
        self._clock = clock
        self._sleep = sleep
        self._children: dict[str, _Child] = {}

    def start(self, spec: ProcessSpec) -> None:
        child = self._children[spec.name] = _Child(spec)
        self._launch(child)

    def is_alive(self, name: str) -> bool:
        child = self._children[name]
        return child.process is not None and child.process.poll() is None

    def knows(self, name: str) -> bool:
        return name in self._children

    def deaths(self, name: str) -> int:
        """How often in a row the child has died young."""
        return self._children[name].deaths

    def has_given_up(self, name: str) -> bool:
        """Whether the child is dead and stays so."""
        child = self._children[name]
        return child.process is None and child.restart_at is None

    def tick(self) -> None:
        """Notice deaths and start again what is due."""
        now = self._clock()
        for child in self._children.values():
            if child.process is not None:
                exit_code = child.process.poll()
                if exit_code is not None:
                    self._bury(child, exit_code, now)
            elif child.restart_at is not None and now >= child.restart_at:
                self._launch(child)

    def stop(self, *, is_impatient: Callable[[], bool]) -> None:
        """End all, rank by rank, each within its bound; at once where `is_impatient` turns true."""
        for rank in sorted({child.spec.stop_rank for child in self._children.values()}):
            group = [child for child in self._children.values() if child.spec.stop_rank is rank]
            self._stop_together(group, is_impatient)

    # ---- steps

    def _launch(self, child: _Child) -> None:
        child.restart_at = None
        try:
            child.process = self._launcher.launch(child.spec)
        except OSError as error:
            child.deaths += 1
            delay_s = backoff_s(child.deaths)
            child.restart_at = self._clock() + delay_s
            self._report(ChildNotStarted(child.spec.name, str(error), delay_s))
            return
        child.started_at = self._clock()
        self._report(ChildStarted(child.spec.name, child.process.pid, is_restart=child.deaths > 0))

    def _bury(self, child: _Child, exit_code: int, now: float) -> None:
        assert child.process is not None
        child.process.kill()  # what it left behind
        child.process = None
        if now - child.started_at >= STABLE_AFTER_S:
            child.deaths = 0
        child.deaths += 1
        delay_s = None if exit_code == WRONG_SETTING_EXIT_CODE else backoff_s(child.deaths)
        child.restart_at = None if delay_s is None else now + delay_s
        self._report(ChildDied(child.spec.name, exit_code, delay_s))

    def _stop_together(self, group: Iterable[_Child], is_impatient: Callable[[], bool]) -> None:
        running: list[tuple[_Child, RunningProcess]] = []
        for child in group:
            child.restart_at = None
            if child.process is not None:
                child.process.terminate()
                running.append((child, child.process))
        began = self._clock()
        while running:
            for child, process in list(running):
                has_ended = process.poll() is not None
                is_overdue = self._clock() - began >= child.spec.stop_bound_s or is_impatient()
                if has_ended or is_overdue:
                    process.kill()
                    child.process = None
                    running.remove((child, process))
                    self._report(ChildStopped(child.spec.name, was_killed=not has_ended))
            if running:
                self._sleep(STOP_POLL_S)


def backoff_s(deaths: int) -> float:
    """Pause before the next start, after so many deaths in a row."""
    return min(BACKOFF_FIRST_S * 2.0 ** min(deaths - 1, 10), BACKOFF_LONGEST_S)
