"""What waits for a LoRA adapter: its base is placed for it, and what stands in the way is told of the adapter."""

from __future__ import annotations

from tasks.controller.adapters import adapters_of, as_demand_of_bases
from tasks.controller.decisions import Action, Code
from tasks.controller.demand import Demand
from tasks.controller.plan import Plan, plan
from tasks.controller.policy_state import PolicyState
from tasks.fleet import Fleet, Placement, QueueReport, RunnerState, WorkerPlacement, WorkerReport
from tests.unit.test_plan_rules import NOW_MS, offer, queue, runner, worker

BASE = offer("base")
TUNE = offer("tune", 0.01, base="base")


def demand(*queues: QueueReport, **fields) -> Demand:
    return Demand(queues=queues, **fields)


def decide(*workers: WorkerReport, asked: Demand) -> Plan:
    fleet = Fleet(now_ms=NOW_MS, workers=workers)
    held: dict[str, WorkerPlacement] = {
        each.id: WorkerPlacement(hold=tuple(r.model for r in each.runners)) for each in workers
    }
    return plan(
        demand=as_demand_of_bases(asked, adapters_of(fleet, asked.away)),
        fleet=fleet,
        placement=Placement(epoch=1, workers=held),
        state=PolicyState(),
    )


def test_demand_of_adapters_is_demand_of_their_base() -> None:
    asked = demand(
        queue("base", 1, depth=2, priority=0),
        queue("tune", 3, depth=4, priority=0),
        queue("other", 5),
        arrivals={("base", 0): 1, ("tune", 0): 2, ("tune", 6): 1},
        service_ms={"base": 100.0, "tune": 400.0, "other": 7.0},
    )
    merged = as_demand_of_bases(asked, {"tune": TUNE})
    assert {each.model: (each.depth, each.oldest_age_ms) for each in merged.queues} == {
        "base": (6, 3000),
        "other": (1, 5000),
    }
    assert merged.arrivals == {("base", 0): 3, ("base", 6): 1}
    assert merged.service_ms["base"] == (2 * 100 + 4 * 400) / 6
    assert [each.queue.model for each in merged.adapters] == ["tune"]
    assert as_demand_of_bases(asked, {}) is asked


def test_base_is_loaded_for_a_job_of_a_cold_adapter() -> None:
    decided = decide(worker("w", (BASE, TUNE)), asked=demand(queue("tune")))
    assert decided.placement.workers["w"].hold == ("base",)
    assert decided.refused() == {}


def test_base_with_jobs_of_its_adapters_is_no_victim_and_gets_a_replica() -> None:
    busy = runner("base", in_flight=4, adapters={"tune": 4})
    offers = (offer("base", max_replicas=2), TUNE)
    asked = demand(queue("tune", depth=100), service_ms={"tune": 2000.0})
    decided = decide(worker("w1", offers, busy), worker("w2", offers), asked=asked)
    assert {name: each.hold for name, each in decided.placement.workers.items()} == {"w1": ("base",), "w2": ("base",)}


def test_what_keeps_the_base_away_is_told_of_the_adapter() -> None:
    broken = (offer("base", failure="truncated"), offer("tune", base="base", failure="truncated"))
    refused = decide(worker("w", broken), asked=demand(queue("tune"))).refused()
    assert "truncated" in refused["tune"].text
    large = (offer("base", 9), TUNE)
    refused = decide(worker("w", large), asked=demand(queue("tune"))).refused()
    assert "its base 'base' serves it" in refused["tune"].text
    pinned = offer("pinned", 2, pinned=True)
    waits = decide(worker("w", (BASE, TUNE, pinned), runner("pinned", 2, in_flight=1)), asked=demand(queue("tune")))
    assert {each.model for each in waits.decisions if each.action in (Action.WAIT, Action.REFUSE)} == {"base", "tune"}


def test_broken_adapter_is_refused_and_its_base_left_alone() -> None:
    here = worker("w", (BASE, offer("tune", base="base", failure="its tensors don't fit")))
    decided = decide(here, asked=demand(queue("tune")))
    assert (decided.refused()["tune"].code, decided.placement.workers["w"].hold) == (Code.LOAD_FAILED, ())
    assert "its tensors don't fit" in decided.refused()["tune"].text


def test_quarantined_adapter_is_refused_while_its_base_serves() -> None:
    here = worker("w", (BASE, TUNE), runner("base"))
    asked = demand(queue("base"), queue("tune"), quarantined={"tune": "three workers were lost"})
    decided = decide(here, asked=asked)
    assert [(model, each.code) for model, each in decided.refused().items()] == [("tune", Code.QUARANTINED)]
    assert decided.placement.workers["w"].hold == ("base",)


def test_quarantine_of_the_base_is_told_of_the_adapter() -> None:
    here = worker("w", (BASE, TUNE), runner("base"))
    refused = decide(here, asked=demand(queue("tune"), quarantined={"base": "three workers were lost"})).refused()
    assert "three workers were lost" in refused["tune"].text


def test_adapter_has_its_own_fallback_and_can_be_one() -> None:
    ready = runner("other", in_flight=0)
    for own, expected in (("other", {"tune": "other"}), (None, {})):
        tune = offer("tune", base="base", failure="truncated", fallback=own)
        offers = (offer("base", failure="truncated"), tune, offer("other"))
        assert decide(worker("w", offers, ready), asked=demand(queue("tune"))).fallbacks == expected
    offers = (offer("broken", failure="truncated", fallback="tune"), BASE, TUNE)
    assert decide(worker("w", offers), asked=demand(queue("broken"))).fallbacks == {"broken": "tune"}


def test_late_jobs_go_to_an_adapter_whose_runner_has_a_free_slot() -> None:
    offers = (offer("a", 2, fallback="tune"), offer("base", 2), TUNE)
    for served, in_flight, expected in (({"tune": 1}, 1, {"a": "tune"}), ({"tune": 4}, 4, {}), ({}, 1, {})):
        busy = runner("base", 2, in_flight=in_flight, adapters=served, age_s=1)
        decided = decide(worker("w", offers, busy), asked=demand(queue("a", 9.5)))
        assert (decided.waiting(), decided.fallbacks) == ({"a"}, expected)


def test_late_jobs_of_an_adapter_in_the_line_of_its_full_base_go_to_its_own_fallback() -> None:
    offers = (BASE, offer("tune", 0.01, base="base", fallback="other"), offer("other"))
    for age_s, expected in ((99, {"tune": 3}), (0.1, {})):
        here = worker("w", offers, runner("base", in_flight=4, adapters={"tune": 4}), runner("other", in_flight=1))
        decided = decide(here, asked=demand(queue("base", age_s, depth=9), queue("tune", age_s, depth=9)))
        assert decided.fallback_slots == expected


def test_jobs_of_an_adapter_whose_worker_is_away_wait_for_it() -> None:
    away = {"base": BASE, "tune": TUNE}
    waits = decide(worker("w", (offer("other"),)), asked=demand(queue("tune"), away=away))
    assert (waits.refused(), waits.waiting()) == ({}, {"tune"})


def test_adapter_that_the_holders_of_its_base_lack_says_so() -> None:
    here = worker("w1", (BASE,), runner("base"))
    there = worker("w2", (BASE, TUNE), gib=0.1)
    (wait,) = [each for each in decide(here, there, asked=demand(queue("tune"))).decisions if each.model == "tune"]
    assert (wait.action, wait.code) == (Action.WAIT, Code.NO_WORKER)
    assert "held by w1, which can't serve 'tune'" in wait.text


def test_ready_runner_of_the_base_is_one_of_the_adapter() -> None:
    ready = runner("base", adapters={"tune": 0})
    fleet = Fleet(now_ms=0, workers=(worker("w", (BASE, TUNE), ready),))
    assert fleet.has_ready_runner("tune")
    assert not fleet.has_ready_runner("other")
    starting = runner("base", adapters={"tune": 0}, state=RunnerState.STARTING)
    assert not Fleet(now_ms=0, workers=(worker("w", (BASE, TUNE), starting),)).has_ready_runner("tune")
