"""How a batch of tokens gets into the store, and what its answers do to the flights."""

from __future__ import annotations

import threading

import pytest

from tasks.jobs import Priority
from tasks.ports import Failed, Lost
from tasks.store.verdict import Verdict
from tests.support.scripted_runner import ManualClock, MemorySink, Told, make_attempt
from workers.flight import Flight
from workers.flights import Flights
from workers.messages import TokenOut
from workers.publisher import FIRST_RETRY_S, LAST_RETRY_S, Publisher

PATIENCE_S = 5.0


class Pauses(threading.Event):
    """Time that passes at once."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        self._clock.advance(timeout)
        return self.is_set()


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.sink = MemorySink()
        self.told = Told()
        self.flights = Flights(model="m", clock=self.clock.clock(), tell=self.told.append)
        self.pauses = Pauses(self.clock)
        self.publisher = Publisher(
            sink=self.sink,
            flights=self.flights,
            clock=self.clock.clock(),
            patience_s=PATIENCE_S,
            give_up=self.pauses,
        )

    def begin(self, job_id: str, *texts: str) -> Flight:
        """A flight that has put these out."""
        flight = self.flights.begin(make_attempt(job_id), Priority.DEFAULT, lambda _: None)
        assert isinstance(flight, Flight)
        self.put_out(flight, *texts)
        return flight

    def put_out(self, flight: Flight, *texts: str) -> None:
        for text in texts:
            flight.add(TokenOut(flight.key, text, (1,)))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_all_that_is_new_goes_out_in_one_call_with_one_chunk_per_flight(bench: Bench) -> None:
    bench.begin("job_1", "a", "b")
    bench.begin("job_2", "x")
    bench.begin("job_3")
    bench.publisher.publish(ended=set())
    bench.publisher.publish(ended=set())
    assert bench.sink.calls == [2]
    assert (bench.sink.text_of("job_1"), bench.sink.text_of("job_2")) == ("ab", "x")


def test_last_words_of_what_ended_are_left_to_its_end(bench: Bench) -> None:
    ended = bench.begin("job_1", "a")
    bench.begin("job_2", "x")
    bench.publisher.publish(ended={ended.key})
    assert [chunk.job_id for chunk in bench.sink.chunks] == ["job_2"]
    assert ended.take_chunk() is not None


def test_flight_that_the_store_wants_cancelled_is_told_once_and_goes_on_until_it_ends(bench: Bench) -> None:
    flight = bench.begin("job_1", "a")
    bench.sink.verdicts["job_1"] = Verdict.CANCEL
    bench.publisher.publish(ended=set())
    bench.put_out(flight, "b")
    bench.publisher.publish(ended=set())
    assert bench.told.cancelled == [flight.key]
    assert not flight.is_resolved
    assert bench.sink.text_of("job_1") == "ab"


def test_lost_flight_is_resolved_at_once_and_alone(bench: Bench) -> None:
    lost, other = bench.begin("job_1", "a"), bench.begin("job_2", "x")
    bench.sink.verdicts["job_1"] = Verdict.LOST
    bench.publisher.publish(ended=set())
    assert lost.wait() == Lost()
    assert bench.told.cancelled == [lost.key]
    bench.put_out(lost, "b")
    bench.put_out(other, "y")
    bench.publisher.publish(ended=set())
    assert bench.sink.calls == [2, 1]


def test_store_outage_is_bridged_without_losing_or_doubling_tokens(bench: Bench) -> None:
    bench.sink.failures_left = 2
    flight = bench.begin("job_1", "abc")
    bench.publisher.publish(ended=set())
    bench.put_out(flight, "d")
    bench.publisher.publish(ended=set())
    assert bench.pauses.seconds == [FIRST_RETRY_S, 2 * FIRST_RETRY_S]
    assert [chunk.seq for chunk in bench.sink.chunks] == [1, 2]
    assert bench.sink.text_of("job_1") == "abcd"


def test_long_outage_makes_what_was_to_be_published_retryable_and_nothing_else(bench: Bench) -> None:
    bench.sink.failures_left = 1000
    speaking, silent = bench.begin("job_1", "abc"), bench.begin("job_2")
    bench.publisher.publish(ended=set())
    outcome = speaking.wait()
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.is_retryable) == ("store_unavailable", True)
    assert not silent.is_resolved
    assert bench.told.cancelled == [speaking.key]
    assert max(bench.pauses.seconds) == LAST_RETRY_S
    assert PATIENCE_S <= sum(bench.pauses.seconds) < PATIENCE_S + LAST_RETRY_S


def test_runner_that_shall_stop_does_not_wait_for_the_store(bench: Bench) -> None:
    bench.sink.failures_left = 1000
    flight = bench.begin("job_1", "abc")
    bench.pauses.set()
    bench.publisher.publish(ended=set())
    assert flight.is_resolved
    assert len(bench.sink.calls) == 1
