"""What is in flight in a runner: who may begin, what the runner is told, and who resolves."""

from __future__ import annotations

import threading

import pytest

from tasks.jobs import JobId, Priority
from tasks.ports import Cancelled, Lost, Outcome, Parked
from tests.support.scripted_runner import PATIENCE_S, ManualClock, Told, make_attempt
from workers.flight import Ending, Flight
from workers.flights import Flights
from workers.messages import Cancel, Generate, ToRunner


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.told = Told()
        self.refusal: Outcome | None = None
        self.flights = Flights(model="m", clock=self.clock.clock(), tell=self.told.append)

    def try_to_begin(self, job_id: str = "job_1", **fields: object) -> Flight | Outcome:
        attempt = make_attempt(job_id, **fields)  # type: ignore[arg-type]
        return self.flights.begin(attempt, Priority.DEFAULT, lambda _: self.refusal)

    def begin(self, job_id: str = "job_1", **fields: object) -> Flight:
        flight = self.try_to_begin(job_id, **fields)
        assert isinstance(flight, Flight)
        return flight


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_attempt_that_begins_is_sent_and_found_by_its_key(bench: Bench) -> None:
    first, second = bench.begin("job_1"), bench.begin("job_2")
    assert [message.key for message in bench.told if isinstance(message, Generate)] == [first.key, second.key]
    assert bench.flights.of_key(second.key) is second
    assert bench.flights.all() == [first, second]


def test_attempt_at_another_model_than_the_runners_names_its_adapter(bench: Bench) -> None:
    bench.begin("job_1")
    bench.begin("job_2", model="poet")
    assert [message.adapter for message in bench.told if isinstance(message, Generate)] == ["", "poet"]
    assert (bench.flights.count_of("m"), bench.flights.count_of("poet"), bench.flights.count_of("cook")) == (1, 1, 0)


def test_refused_attempt_never_reaches_the_runner(bench: Bench) -> None:
    bench.refusal = Lost()
    assert bench.try_to_begin() == Lost()
    assert bench.told == []
    assert bench.flights.all() == []
    assert bench.flights.busy_since_s is None


def test_attempt_past_its_deadline_is_expired_with_the_text_that_it_had(bench: Bench) -> None:
    outcome = bench.try_to_begin(deadline_ms=1, emitted_text="Once")
    assert outcome == Cancelled(text="Once", usage=None, is_expired=True)
    assert bench.told == []


def test_parking_asks_those_that_are_there_and_keeps_out_those_that_come(bench: Bench) -> None:
    flight = bench.begin("job_1")
    bench.flights.park_all()
    assert bench.told.cancelled == [flight.key]
    assert bench.try_to_begin("job_2") == Parked()
    assert bench.flights.all() == [flight]


def test_higher_attempt_of_a_job_displaces_the_lower_one_alone(bench: Bench) -> None:
    older, other = bench.begin("job_1", number=1), bench.begin("job_2", number=1)
    bench.begin("job_1", number=2)
    assert older.wait() == Lost()
    assert not other.is_resolved
    assert bench.told.cancelled == [older.key]
    assert bench.flights.of_key(older.key) is older  # its slot comes back with its Done


def test_attempt_that_is_lost_takes_no_other_of_its_job_along(bench: Bench) -> None:
    newer, other = bench.begin("job_1", number=2), bench.begin("job_2", number=1)
    bench.flights.lose(JobId("job_1"), 1)
    assert bench.told.cancelled == []
    bench.flights.lose(JobId("job_1"), 2)
    assert newer.wait() == Lost()
    assert not other.is_resolved
    assert bench.told.cancelled == [newer.key]


def test_resolved_attempt_needs_no_lease(bench: Bench) -> None:
    lost, other = bench.begin("job_1"), bench.begin("job_2")
    other.steps += 3
    bench.flights.abandon(lost, Lost())
    assert [(each.job_id, each.number, each.steps) for each in bench.flights.running_attempts()] == [("job_2", 1, 3)]


def test_cancel_finds_every_attempt_of_the_job_and_tells_the_runner_once(bench: Bench) -> None:
    flight = bench.begin("job_1")
    bench.begin("job_2")
    assert bench.flights.cancel(JobId("job_1"))
    assert bench.flights.cancel(JobId("job_1"))
    assert not bench.flights.cancel(JobId("job_9"))
    assert bench.told.cancelled == [flight.key]


def test_only_those_past_their_deadline_are_expired(bench: Bench) -> None:
    now_ms = bench.clock.clock().now_ms()
    late, later = bench.begin("job_1", deadline_ms=now_ms + 500), bench.begin("job_2", deadline_ms=now_ms + 5000)
    bench.flights.expire()
    assert bench.told.cancelled == []
    bench.clock.advance(1)
    bench.flights.expire()
    assert bench.told.cancelled == [late.key]
    assert later.ask_to_end(Ending.CANCEL)


def test_cancel_waits_until_the_runner_has_heard_of_the_attempt() -> None:
    told: list[ToRunner] = []
    cancellers: list[threading.Thread] = []

    def tell(message: ToRunner) -> None:
        if isinstance(message, Generate):  # while it is on its way, somebody wants its end
            flight = flights.of_key(message.key)
            assert flight is not None
            cancellers.append(threading.Thread(target=flights.abandon, args=(flight, Lost()), daemon=True))
            cancellers[0].start()
            flight.wait()
        told.append(message)

    flights = Flights(model="m", clock=ManualClock().clock(), tell=tell)
    flights.begin(make_attempt(), Priority.DEFAULT, lambda _: None)
    cancellers[0].join(PATIENCE_S)
    assert [type(message) for message in told] == [Generate, Cancel]


def test_it_is_busy_from_the_first_begin_to_the_last_removal(bench: Bench) -> None:
    start_s = bench.clock.seconds
    first = bench.begin("job_1")
    bench.clock.advance(1)
    second = bench.begin("job_2")
    seen = []
    for flight in (first, second):
        bench.flights.remove(flight)
        seen.append(bench.flights.busy_since_s)
    bench.clock.advance(1)
    bench.begin("job_3")
    assert [*seen, bench.flights.busy_since_s] == [start_s, None, start_s + 2]


def test_one_alone_removes_a_flight(bench: Bench) -> None:
    flight = bench.begin()
    assert [bench.flights.remove(flight) for _ in range(2)] == [True, False]
    assert bench.flights.all() == []
