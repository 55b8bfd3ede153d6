"""Who finds a place in a runner, by priority."""

from __future__ import annotations

from tasks.jobs import Priority
from workers.places import Places


def test_urgent_work_does_not_count_batch_work() -> None:
    places = Places(2)
    assert [places.take(Priority.BATCH) for _ in range(3)] == [True, True, False]
    assert [places.take(Priority.DEFAULT), places.take(Priority.INTERACTIVE), places.take(Priority.DEFAULT)] == [
        True,
        True,
        False,
    ]
    assert (places.in_flight, places.batch_in_flight) == (4, 2)


def test_batch_work_counts_everything() -> None:
    places = Places(2)
    places.take(Priority.DEFAULT)
    assert (places.room(Priority.BATCH), places.room(Priority.DEFAULT)) == (1, 1)
    places.take(Priority.BATCH)
    assert (places.room(Priority.BATCH), places.room(Priority.DEFAULT)) == (0, 1)


def test_openness_changes_with_the_last_place_only() -> None:
    places = Places(2)
    seen = [places.openness]
    for priority in (Priority.BATCH, Priority.BATCH, Priority.DEFAULT, Priority.DEFAULT):
        places.take(priority)
        seen.append(places.openness)
    assert [(each.for_batch, each.for_urgent) for each in seen] == [
        (True, True), (True, True), (False, True), (False, True), (False, False),
    ]  # fmt: skip
    places.give_back(Priority.DEFAULT)
    assert places.openness == seen[3]
