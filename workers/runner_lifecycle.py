"""The state of one runner, and who has a place in it. Knows neither the process nor what runs in the places.

One lock guards the state, its times and the places, since a place is to be had in a ready runner only. No other lock is
ever taken under it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

from tasks.fleet import RUNNER_NEXT, RunnerReport, RunnerState
from tasks.jobs import Priority
from workers.clock import Clock
from workers.places import Places

GONE = frozenset({RunnerState.STOPPED, RunnerState.CRASHED})


class RunnerLifecycle:
    """States as in `tasks.fleet.RUNNER_NEXT`. `on_change` is called without the lock, from any thread: when the state
    has changed, when a load has read its file, and when places have run out or are to be had again."""

    def __init__(self, *, slots: int, clock: Clock, on_change: Callable[[], None]) -> None:
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._state = RunnerState.STARTING
        self._since_ms = self._idle_since_ms = clock.now_ms()
        self._slots = slots
        self._places = Places(slots)
        self._slot_bytes = 0
        self._settled = threading.Event()
        self._has_read = False
        self.stop_wanted = threading.Event()  # it never opens any more, and its end is no crash

    # ---- what it is

    @property
    def state(self) -> RunnerState:
        return self._state

    @property
    def has_read(self) -> bool:
        """Whether its load needs the disk no longer."""
        return self._has_read

    @property
    def is_settled(self) -> bool:
        return self._settled.is_set()

    @property
    def in_flight(self) -> int:
        """Attempts that hold a place, whether they have begun or not."""
        return self._places.in_flight

    def room(self, priority: Priority) -> int:
        """Places for attempts of this priority."""
        with self._lock:
            return self._places.room(priority) if self._state is RunnerState.READY else 0

    def report(
        self, *, pid: int, model: str, bytes_held: int, progress: float, state: RunnerState | None = None
    ) -> RunnerReport:
        """`state`: in place of its own."""
        with self._lock:
            return RunnerReport(
                pid=pid,
                model=model,
                state=state or self._state,
                bytes=bytes_held,
                slots=self._slots,
                closed_slots=self._slots - self._places.slots,
                slot_bytes=self._slot_bytes,
                in_flight=self.in_flight,
                batch_in_flight=self._places.batch_in_flight,
                since_ms=self._since_ms,
                idle_since_ms=None if self.in_flight else self._idle_since_ms,
                progress=progress,
            )

    @property
    def closed_slots(self) -> int:
        return self._slots - self._places.slots

    @property
    def slot_bytes(self) -> int:
        """What one more open slot will take."""
        return self._slot_bytes

    # ---- places

    def widen(self) -> None:
        """Open one more slot, of those that are closed. Nobody is told: the caller, who has paid for it, is about to
        take it."""
        with self._lock:
            self._places.slots = min(self._slots, self._places.slots + 1)

    def take_place(self, priority: Priority) -> bool:
        """False when it is full for this priority, or not ready."""
        with self._lock:
            before = self._places.openness
            if self._state is not RunnerState.READY or not self._places.take(priority):
                return False
            has_changed = self._places.openness != before
        if has_changed:
            self._on_change()
        return True

    def give_back_place(self, priority: Priority) -> None:
        with self._idle:
            before = self._places.openness
            self._places.give_back(priority)
            has_changed = self._state is RunnerState.READY and self._places.openness != before
            if self.in_flight == 0:
                self._idle_since_ms = self._clock.now_ms()
                self._idle.notify_all()
        if has_changed:
            self._on_change()

    def wait_idle(self, timeout_s: float) -> bool:
        """True when no place is taken any more, or it is settled."""
        with self._idle:
            return self._idle.wait_for(lambda: self.in_flight == 0 or self._settled.is_set(), timeout_s)

    # ---- transitions

    def note_read(self) -> None:
        """The load has read its file. The reader thread alone may call this."""
        if not self._has_read:
            self._has_read = True
            self._on_change()

    def open(self, *, closed_slots: int = 0, slot_bytes: int = 0) -> bool:
        """Starting → ready, without some of its slots at first, of which each will take so many bytes. False when it is
        gone by now, or shall be."""
        with self._lock:
            opened = self._state is RunnerState.STARTING and not self.stop_wanted.is_set()
            if opened:
                self._places.slots, self._slot_bytes = self._slots - closed_slots, slot_bytes
                self._move_to(RunnerState.READY)
        self._on_change()
        return opened

    def drain(self) -> None:
        """Ready → draining; nothing in any other state."""
        with self._lock:
            if self._state is not RunnerState.READY:
                return
            self._move_to(RunnerState.DRAINING)
        self._on_change()

    def end(self, state: Literal[RunnerState.STOPPED, RunnerState.CRASHED]) -> None:
        """The process is gone. Nobody is told before `settle`."""
        with self._lock:
            self._move_to(state)

    def settle(self) -> None:
        """It has ended, and everything that was in flight has its outcome."""
        self._settled.set()
        with self._idle:
            self._idle.notify_all()
        self._on_change()

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        return self._settled.wait(timeout_s)

    def _move_to(self, state: RunnerState) -> None:
        """The one place that changes the state; the caller holds the lock."""
        if state not in RUNNER_NEXT[self._state]:
            raise AssertionError(f"A runner never goes from {self._state} to {state}.")
        self._state = state
        self._since_ms = self._clock.now_ms()
