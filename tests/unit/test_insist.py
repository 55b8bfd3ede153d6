"""An attempt's outcome outlasts a restart of the store, and no longer."""

from __future__ import annotations

import pytest

from tasks.errors import StoreUnavailable
from tasks.generate import INSISTENCE_S, insist


class Store:
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.writes = 0

    def write(self) -> None:
        self.writes += 1
        if self.writes <= self.failures:
            raise StoreUnavailable("It restarts.")


def test_write_is_repeated_until_the_store_is_back():
    store, pauses = Store(failures=3), list[float]()
    insist(store.write, pause=pauses.append)
    assert store.writes == 4
    assert pauses == list(INSISTENCE_S[:3])


def test_store_that_stays_away_is_reported():
    store = Store(failures=100)
    with pytest.raises(StoreUnavailable):
        insist(store.write, pause=lambda _: None)
    assert store.writes == len(INSISTENCE_S) + 1
