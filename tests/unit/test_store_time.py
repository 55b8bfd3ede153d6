"""Deadlines are by the store's clock, whatever the host believes the time to be."""

from __future__ import annotations

import time

import pytest

from tasks.errors import StoreUnavailable
from workers.clock import StoreTime


class Clocks:
    """The store's clock runs an hour behind ours; both move together."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.is_store_there = True

    def monotonic_s(self) -> float:
        return self.seconds

    def store_ms(self) -> int:
        if not self.is_store_there:
            raise StoreUnavailable("It restarts.")
        return int(self.seconds * 1000) + 5_000_000


def test_time_is_the_stores_and_goes_on_between_questions():
    clocks = Clocks()
    store_time = StoreTime(clocks.store_ms, clocks.monotonic_s)
    store_time.synchronise()
    assert store_time.now_ms() == 5_100_000
    clocks.seconds += 2.5
    assert store_time.now_ms() == 5_102_500


def test_store_that_is_away_leaves_the_last_answer():
    clocks = Clocks()
    store_time = StoreTime(clocks.store_ms, clocks.monotonic_s)
    store_time.synchronise()
    clocks.is_store_there = False
    with pytest.raises(StoreUnavailable):
        store_time.synchronise()
    clocks.seconds += 1
    assert store_time.now_ms() == 5_101_000


def test_before_the_first_answer_it_is_the_systems():
    assert abs(StoreTime(lambda: 0).now_ms() - time.time() * 1000) < 60_000
