"""Predicted waits and Retry-After, from values to values."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.fleet import Fleet, ModelOffer, RunnerReport, RunnerState, WorkerReport
from tasks.forecast import (
    MAX_RETRY_AFTER_S,
    MIN_SAMPLES,
    Seats,
    ServiceTime,
    jobs_per_s,
    predicted_wait_ms,
    retry_after_s,
    seats,
)
from tasks.jobs import Priority, WorkerId

OFFER = ModelOffer(id="m", context_length=64, slots=4, bytes=1, load_ms=2000)
TWO_SECONDS = ServiceTime(mean_ms=2000, samples=MIN_SAMPLES, measured_ms=0)


def runner(state: RunnerState = RunnerState.READY, *, in_flight: int = 0, progress: float = 1.0) -> RunnerReport:
    return RunnerReport(
        pid=1, model="m", state=state, bytes=1, slots=4, in_flight=in_flight, since_ms=0, progress=progress
    )


def fleet(*runners: RunnerReport, is_draining: bool = False) -> Fleet:
    worker = WorkerReport(
        id=WorkerId("w"), pid=1, host="h", device="cpu", budget_bytes=1, used_bytes=1, started_ms=0,
        is_draining=is_draining, offers=(OFFER,), runners=runners,
    )  # fmt: skip
    return Fleet(now_ms=0, workers=(worker,))


def test_seats_are_those_of_all_ready_runners() -> None:
    assert seats(OFFER, fleet(runner(in_flight=3), runner())) == Seats(slots=8, free=5)


def test_batch_work_gives_its_places_to_all_others() -> None:
    full = msgspec.structs.replace(runner(in_flight=4), batch_in_flight=3)
    assert seats(OFFER, fleet(full), Priority.DEFAULT) == Seats(slots=4, free=3)
    assert seats(OFFER, fleet(full), Priority.BATCH) == Seats(slots=4, free=0)


def test_closed_slots_are_seats_as_far_as_memory_goes() -> None:
    narrow = msgspec.structs.replace(runner(in_flight=1), closed_slots=3, slot_bytes=10)
    for budget, expected in ((1, Seats(slots=1, free=0)), (26, Seats(slots=3, free=2)), (99, Seats(slots=4, free=3))):
        (worker,) = fleet(narrow).workers
        roomy = msgspec.structs.replace(worker, budget_bytes=budget)
        assert seats(OFFER, Fleet(now_ms=0, workers=(roomy,))) == expected


def test_cold_and_loading_models_cost_their_load() -> None:
    cold = Seats(slots=4, free=4, load_ms=2000)
    assert seats(OFFER, fleet()) == cold
    assert seats(OFFER, fleet(runner(), is_draining=True)) == cold
    assert seats(OFFER, fleet(runner(RunnerState.STARTING, progress=0.75))).load_ms == 500


@pytest.mark.parametrize(
    ("ahead", "where", "expected_ms"),
    [
        (0, Seats(slots=4, free=1), 0),
        (0, Seats(slots=4, free=0), 500),
        (7, Seats(slots=4, free=0), 4000),
        (2, Seats(slots=4, free=2), 500),
        (0, Seats(slots=4, free=4, load_ms=2000), 2000),
        (4, Seats(slots=4, free=4, load_ms=2000), 2500),
    ],
)
def test_wait_is_the_load_and_the_jobs_that_must_end_before(ahead: int, where: Seats, expected_ms: int) -> None:
    assert predicted_wait_ms(ahead=ahead, seats=where, service=TWO_SECONDS) == expected_ms


def test_wait_is_unknown_only_when_it_depends_on_a_measure_that_is_missing() -> None:
    assert predicted_wait_ms(ahead=0, seats=Seats(slots=4, free=1), service=None) == 0
    assert predicted_wait_ms(ahead=1, seats=Seats(slots=4, free=1), service=None) is None


def test_rates_of_models_add_up() -> None:
    assert jobs_per_s([(Seats(slots=4, free=0), TWO_SECONDS), (Seats(slots=1, free=0), TWO_SECONDS)]) == 2.5
    assert jobs_per_s([(Seats(slots=4, free=0), None)]) is None


def test_retry_comes_when_the_line_has_moved() -> None:
    assert retry_after_s(depth=100, rate=2.0, unknown_s=5) == 3  # a twentieth of the line
    assert retry_after_s(depth=2, rate=0.1, unknown_s=5) == 10  # but at least one job
    assert retry_after_s(depth=100, rate=None, unknown_s=5) == 5
    assert retry_after_s(depth=10_000, rate=0.01, unknown_s=5) == MAX_RETRY_AFTER_S


@given(
    ahead=st.integers(0, 10_000),
    slots=st.integers(1, 64),
    free=st.integers(0, 64),
    mean_ms=st.floats(0, 1e6),
)
def test_wait_never_shrinks_with_the_line(ahead: int, slots: int, free: int, mean_ms: float) -> None:
    where = Seats(slots=slots, free=min(free, slots))
    service = ServiceTime(mean_ms=mean_ms, samples=9, measured_ms=0)
    shorter = predicted_wait_ms(ahead=ahead, seats=where, service=service)
    longer = predicted_wait_ms(ahead=ahead + 1, seats=where, service=service)
    assert shorter is not None and longer is not None and 0 <= shorter <= longer
