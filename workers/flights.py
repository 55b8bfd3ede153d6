"""What is in flight in one runner: begins it, asks it to end, and hands it over to whoever resolves it. Knows neither
states nor slots.

Two locks, in this order. `_begin_lock` covers a flight's entry together with its first message, so that no Cancel
overtakes its Generate; the link is written under it. `_lock` guards the table and all else that changes here. Whether a
flight may begin is asked under it, too: so whoever changes the answer and then looks at the table sees every flight
that began by the old one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tasks.encoding import EncodingRequest
from tasks.jobs import JobId, Priority
from tasks.ports import Attempt, Cancelled, Lost, Outcome, Parked
from workers.clock import Clock
from workers.flight import Ending, Flight
from workers.lease_keeper import RunningAttempt
from workers.messages import Cancel, Encode, Generate, ToRunner


class Flights:
    """Thread-safe. `tell` sends to the runner and never raises for one that is gone: its end settles what is here."""

    def __init__(self, *, model: str, clock: Clock, tell: Callable[[ToRunner], None]) -> None:
        self._model = model
        self._clock = clock
        self._tell = tell
        self._begin_lock = threading.Lock()
        self._lock = threading.Lock()
        self._by_key: dict[int, Flight] = {}
        self._next_key = 1
        self._busy_since_s: float | None = None
        self._is_parking = False

    # ---- what is there

    def of_key(self, key: int) -> Flight | None:
        with self._lock:
            return self._by_key.get(key)

    def all(self) -> list[Flight]:
        """In the order in which they began."""
        with self._lock:
            return list(self._by_key.values())

    @property
    def busy_since_s(self) -> float | None:
        """Since when there has always been a flight, in monotonic seconds; None when there is none."""
        with self._lock:
            return self._busy_since_s

    def count_of(self, model: str) -> int:
        return sum(flight.attempt.model == model for flight in self.all())

    def running_attempts(self) -> list[RunningAttempt]:
        """With the engine steps since each began: the proof of life for its lease."""
        return [
            RunningAttempt(flight.attempt.job_id, flight.attempt.number, flight.steps)
            for flight in self.all()
            if not flight.is_resolved
        ]

    # ---- begin

    def begin(
        self, attempt: Attempt, priority: Priority, refuse: Callable[[Flight], Outcome | None]
    ) -> Flight | Outcome:
        """Send the attempt to the runner; its outcome instead where it may not begin."""
        for other in self.all():
            if other.attempt.job_id == attempt.job_id and other.attempt.number < attempt.number:
                self.abandon(other, Lost())  # rescued while it still ran here: the higher attempt has won
        with self._begin_lock:
            with self._lock:
                flight = Flight(attempt, self._next_key, priority)
                self._next_key += 1
                refusal = self._refusal(flight, refuse)
                if refusal is not None:
                    return refusal
                if self._busy_since_s is None:
                    self._busy_since_s = self._clock.monotonic_s()
                self._by_key[flight.key] = flight
            self._tell(_order(flight, of=self._model))
        return flight

    def _refusal(self, flight: Flight, refuse: Callable[[Flight], Outcome | None]) -> Outcome | None:
        if self._is_parking:
            return Parked()
        if refusal := refuse(flight):
            return refusal
        if flight.expires_before(self._clock.now_ms()):
            return Cancelled(text=flight.attempt.emitted_text, usage=None, is_expired=True)
        return None

    # ---- ask for an end

    def end(self, flight: Flight, ending: Ending) -> None:
        if flight.ask_to_end(ending):
            self._tell_cancel(flight)

    def abandon(self, flight: Flight, outcome: Outcome) -> None:
        """Resolve now, whatever the runner still does; its slot comes back with its Done."""
        flight.resolve(outcome)
        self._tell_cancel(flight)

    def cancel(self, job_id: JobId) -> bool:
        """End all attempts of the job here; False when there are none."""
        flights = [each for each in self.all() if each.attempt.job_id == job_id]
        for flight in flights:
            self.end(flight, Ending.CANCEL)
        return bool(flights)

    def lose(self, job_id: JobId, number: int) -> None:
        """Give up this attempt alone: the job is another one's, or has ended."""
        for flight in self.all():
            if (flight.attempt.job_id, flight.attempt.number) == (job_id, number):
                self.abandon(flight, Lost())

    def park_all(self) -> None:
        """Stop every flight at a token boundary; attempts that begin from now on are parked at once."""
        with self._lock:
            self._is_parking = True
        for flight in self.all():
            self.end(flight, Ending.PARK)

    def expire(self) -> None:
        """Ask those to end whose deadline has passed."""
        now_ms = self._clock.now_ms()
        for flight in self.all():
            if flight.expires_before(now_ms):
                self.end(flight, Ending.EXPIRE)

    def _tell_cancel(self, flight: Flight) -> None:
        with self._begin_lock:
            self._tell(Cancel(flight.key))

    # ---- the end

    def remove(self, flight: Flight) -> bool:
        """True for the one caller that has to give its slot back and to resolve it."""
        with self._lock:
            was_there = self._by_key.pop(flight.key, None) is not None
            if not self._by_key:
                self._busy_since_s = None
        return was_there


def _order(flight: Flight, *, of: str) -> Generate | Encode:
    """`of`: the runner's model; what was asked from another one is for an adapter over its weights."""
    attempt = flight.attempt
    adapter = "" if attempt.model == of else attempt.model
    if isinstance(attempt.request, EncodingRequest):
        return Encode(key=flight.key, request=attempt.request, published_rows=attempt.published_rows, adapter=adapter)
    return Generate(
        key=flight.key,
        request=attempt.request,
        forced_ids=attempt.forced_ids,
        emitted_text=attempt.emitted_text,
        priority=flight.priority,
        adapter=adapter,
    )
