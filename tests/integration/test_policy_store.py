"""What the controller keeps between ticks, against a real server."""

from __future__ import annotations

import pytest

from tasks.controller.decisions import Action, Code, Decision
from tasks.controller.policy_state import PolicyState
from tasks.fleet import LoadCounts
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import connect
from tasks.store.fleet_store import FleetStore
from tasks.store.policy_store import PolicyStore


@pytest.fixture
def policy(store_settings: StoreSettings) -> PolicyStore:
    return PolicyStore(connect(store_settings))


@pytest.fixture
def fleet(store_settings: StoreSettings) -> FleetStore:
    return FleetStore(connect(store_settings))


def decision(model: str, code: Code = Code.ROOM) -> Decision:
    return Decision(at_ms=1, action=Action.LOAD, code=code, model=model, text="because", terms={"bytes": 2})


def test_decisions_are_read_newest_first_and_counted(policy: PolicyStore, fleet: FleetStore) -> None:
    leadership = fleet.lead("me", 5_000)
    assert policy.remember(None, [decision("a"), decision("b", Code.REPLICA)], "me", leadership)
    assert policy.remember(None, [decision("a")], "me", leadership)
    assert [each.model for each in policy.decisions(10)] == ["a", "b", "a"]
    assert policy.decisions(1, models={"b"}) == [decision("b", Code.REPLICA)]
    assert policy.decision_counts() == {("load", "room"): 2, ("load", "replica"): 1}


def test_decisions_of_another_version_are_left_out(policy: PolicyStore, store_settings: StoreSettings) -> None:
    client = connect(store_settings)
    client.xadd(keys.DECISIONS, {"d": b'{"action":"load","code":"a code of tomorrow"}'})
    assert policy.decisions(10) == []


def test_who_no_longer_leads_writes_nothing(policy: PolicyStore, fleet: FleetStore) -> None:
    leadership = fleet.lead("me", 5_000)
    assert not policy.remember(PolicyState(), [decision("a")], "another", leadership)
    assert policy.decisions(10) == []
    assert policy.decision_counts() == {}


def test_what_a_worker_decides_on_its_own_stands_among_the_controllers_decisions(
    policy: PolicyStore, fleet: FleetStore
) -> None:
    assert policy.remember(None, [decision("a")], "me", fleet.lead("me", 5_000))
    own = Decision(at_ms=2, action=Action.EVICT, code=Code.OUTDATED, model="a", worker="w", text="slots 2 → 3")
    policy.note(own)
    assert policy.decisions(10, models={"a"}) == [own, decision("a")]
    assert policy.decision_counts() == {("load", "room"): 1, ("evict", "outdated"): 1}


def test_loads_are_counted_by_model(fleet: FleetStore) -> None:
    fleet.count_load("a", 200, 900)
    fleet.count_load("a", 300, 300)
    fleet.count_load("n b", 50, 60)
    fleet.count_cold_start("a")
    fleet.count_cold_start("never loaded")
    assert fleet.loads() == {
        "a": LoadCounts(loads=2, load_ms=500, swap_ms=1200, cold_starts=1),
        "n b": LoadCounts(loads=1, load_ms=50, swap_ms=60, cold_starts=0),
        "never loaded": LoadCounts(loads=0, load_ms=0, swap_ms=0, cold_starts=1),
    }
