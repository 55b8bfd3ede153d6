"""Which models are known, while workers come and go: against a real server."""

from __future__ import annotations

import pytest

from tasks.fleet import ModelOffer, WorkerReport
from tasks.jobs import WorkerId
from tasks.store import keys
from tasks.store.connection import Client
from tasks.store.fleet_store import FleetStore

MINUTE_MS = 60_000


@pytest.fixture
def fleet(client: Client) -> FleetStore:
    return FleetStore(client)


def report(worker: str, *models: str) -> WorkerReport:
    offers = tuple(ModelOffer(id=model, context_length=64, slots=1, bytes=1, load_ms=1) for model in models)
    return WorkerReport(
        id=WorkerId(worker), pid=1, host="h", device="cpu", budget_bytes=1, used_bytes=0, started_ms=0, offers=offers
    )


def known(fleet: FleetStore) -> set[str]:
    return {offer.id for offer in fleet.known_offers()}


def test_offers_outlive_their_worker(fleet: FleetStore) -> None:
    fleet.heartbeat(report("w1", "a"))
    fleet.forget_worker(WorkerId("w1"))
    assert known(fleet) == {"a"}


def test_withdrawn_offer_is_gone_at_once_unless_another_worker_makes_it(fleet: FleetStore) -> None:
    fleet.heartbeat(report("w1", "a", "b"))
    fleet.heartbeat(report("w2", "b"))
    fleet.heartbeat(report("w1"), withdrawn={"a", "b"})
    fleet.heartbeat(report("w2", "b"))
    assert known(fleet) == {"b"}


def test_offers_that_nobody_makes_are_forgotten_after_a_while(fleet: FleetStore, client: Client) -> None:
    fleet.heartbeat(report("w1", "a", "b"))
    client.zincrby(keys.OFFERS_SEEN, -11 * MINUTE_MS, "a")
    assert fleet.forget_old_offers(10 * MINUTE_MS) == ("a",)
    assert known(fleet) == {"b"}


def test_offers_stay_while_the_whole_fleet_is_away(fleet: FleetStore, client: Client) -> None:
    fleet.heartbeat(report("w1", "a"))
    fleet.forget_worker(WorkerId("w1"))
    client.zincrby(keys.OFFERS_SEEN, -11 * MINUTE_MS, "a")
    assert fleet.forget_old_offers(10 * MINUTE_MS) == ()
    assert known(fleet) == {"a"}
