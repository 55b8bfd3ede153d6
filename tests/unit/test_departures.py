"""Nobody waits for these jobs any more, and the store hears of it as soon as it can."""

from __future__ import annotations

import asyncio

import pytest

from app.departures import PATIENCE_S, Departures
from tasks.errors import JobNotFound, StoreUnavailable
from tasks.jobs import JobId

FIRST, SECOND = JobId("job_1"), JobId("job_2")


class Store:
    def __init__(self, *, is_away: bool) -> None:
        self.is_away = is_away
        self.told: list[JobId] = []
        self.is_told = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def leave(self, job_id: JobId) -> None:
        if self.is_away:
            raise StoreUnavailable("away")
        self.told.append(job_id)
        if job_id == SECOND:
            self._loop.call_soon_threadsafe(self.is_told.set)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.departures.RETRY_S", 0.0)


async def test_store_that_answers_is_told_at_once() -> None:
    store, departures = Store(is_away=False), Departures()
    await departures.tell(lambda: store.leave(FIRST), FIRST)
    assert store.told == [FIRST]
    await departures.close()


async def test_store_that_is_away_is_told_once_it_is_back() -> None:
    store, departures = Store(is_away=True), Departures()
    await departures.tell(lambda: store.leave(FIRST), FIRST)
    await departures.tell(lambda: store.leave(SECOND), SECOND)
    assert store.told == []
    store.is_away = False
    async with asyncio.timeout(5):
        await store.is_told.wait()
    assert store.told == [FIRST, SECOND]
    await departures.close()


async def test_job_that_is_gone_keeps_no_other_from_being_told() -> None:
    store, departures = Store(is_away=True), Departures()
    answers = iter([StoreUnavailable("away"), StoreUnavailable("away"), JobNotFound("job_0"), RuntimeError("a bug")])

    def gone() -> None:
        raise next(answers)

    for _ in range(2):
        await departures.tell(gone, JobId("job_0"))
    await departures.tell(lambda: store.leave(SECOND), SECOND)
    store.is_away = False
    async with asyncio.timeout(5):
        await store.is_told.wait()
    assert next(answers, None) is None
    await departures.close()


async def test_store_that_stays_away_is_not_told_for_ever() -> None:
    now = 0.0
    store, departures = Store(is_away=True), Departures(lambda: now)

    def never() -> None:
        raise StoreUnavailable("away")

    await departures.tell(never, FIRST)
    now = PATIENCE_S
    await departures.tell(lambda: store.leave(SECOND), SECOND)
    store.is_away = False
    async with asyncio.timeout(5):
        await store.is_told.wait()
    assert store.told == [SECOND]
    await departures.close()
