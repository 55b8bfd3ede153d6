"""The controller's decisions, from values to values."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import example, given
from hypothesis import strategies as st

from tasks.controller.decisions import Action, Code
from tasks.controller.demand import Demand
from tasks.controller.plan import RULES, Plan, plan
from tasks.controller.policy_state import PolicyState
from tasks.fleet import (
    Fleet,
    ModelOffer,
    Placement,
    QueueReport,
    RunnerReport,
    RunnerState,
    WorkerPlacement,
    WorkerReport,
)
from tasks.jobs import WorkerId

NOW_MS = 1_000_000_000
GIB = 2**30
LOAD_MS = 1000


def offer(model: str, gib: float = 1, **fields: object) -> ModelOffer:
    values = {"context_length": 4096, "slots": 4, "bytes": int(gib * GIB), "load_ms": LOAD_MS, **fields}
    return ModelOffer(id=model, **values)  # type: ignore[arg-type]


def runner(model: str, gib: float = 1, *, in_flight: int = 0, idle_s: float = 5, age_s: float = 60) -> RunnerReport:
    return RunnerReport(
        pid=1,
        model=model,
        state=RunnerState.READY,
        bytes=int(gib * GIB),
        slots=4,
        in_flight=in_flight,
        since_ms=NOW_MS - int(age_s * 1000),
        idle_since_ms=None if in_flight else NOW_MS - int(idle_s * 1000),
    )


def worker(
    offers: tuple[ModelOffer, ...], runners: tuple[RunnerReport, ...] = (), *, name: str = "w1", budget_gib: float = 2
) -> WorkerReport:
    return WorkerReport(
        id=WorkerId(name),
        pid=1,
        host="h",
        device="cpu",
        budget_bytes=int(budget_gib * GIB),
        used_bytes=sum(each.bytes for each in runners),
        started_ms=0,
        offers=offers,
        runners=runners,
    )


def waiting(model: str, age_s: float = 0.1, depth: int = 1) -> QueueReport:
    return QueueReport(model=model, depth=depth, oldest_age_ms=int(age_s * 1000))


def decide(
    workers: tuple[WorkerReport, ...],
    queues: tuple[QueueReport, ...] = (),
    *,
    hold: Mapping[str, tuple[str, ...]] | None = None,
    asks: Mapping[str, str] | None = None,
) -> Plan:
    placement = Placement(epoch=7, workers={name: WorkerPlacement(hold=held) for name, held in (hold or {}).items()})
    return plan(
        demand=Demand(queues=queues, asks=asks or {}),
        fleet=Fleet(now_ms=NOW_MS, workers=workers),
        placement=placement,
        state=PolicyState(),
    )


def actions(decided: Plan) -> list[str]:
    return [str(each.action) for each in decided.decisions]


def test_cold_model_with_waiting_jobs_is_placed_where_room_is() -> None:
    offers = (offer("a"),)
    full = worker((*offers, offer("b", 1.5)), (runner("b", 1.5, in_flight=1),), name="w1")
    empty = worker(offers, name="w2")
    decided = decide((full, empty), (waiting("a"),), hold={"w1": ("b",)})
    assert decided.placement.epoch == 8
    assert decided.placement.workers["w2"].hold == ("a",)
    assert actions(decided) == ["load"]


def test_nothing_changes_while_everything_is_warm() -> None:
    decided = decide((worker((offer("a"),), (runner("a"),)),), (waiting("a"),), hold={"w1": ("a",)})
    assert decided.placement.epoch == 7
    assert [(each.action, each.code) for each in decided.decisions] == [(Action.KEEP, Code.SLOTS_FREE)]


def test_longest_idle_model_leaves_first() -> None:
    offers = (offer("a"), offer("b"), offer("c"))
    runners = (runner("a", idle_s=30), runner("b", idle_s=2))
    decided = decide((worker(offers, runners),), (waiting("c"),), hold={"w1": ("a", "b")})
    assert decided.placement.workers["w1"] == WorkerPlacement(hold=("b", "c"), evict=("a",))


def test_busy_model_stays_until_the_candidate_is_late() -> None:
    offers = (offer("a", 2), offer("b", 2))
    busy = worker(offers, (runner("a", 2, in_flight=1, age_s=RULES.frame_ms(1000) / 1000 + 1),))
    early = decide((busy,), (waiting("b"),), hold={"w1": ("a",)})
    assert actions(early) == ["wait"]
    late = decide((busy,), (waiting("b", age_s=RULES.interactive_target_ms / 1000),), hold={"w1": ("a",)})
    assert late.placement.workers["w1"] == WorkerPlacement(hold=("b",), evict=("a",))


def test_freshly_loaded_model_is_not_displaced_while_busy() -> None:
    offers = (offer("a", 2), offer("b", 2))
    fresh = worker(offers, (runner("a", 2, in_flight=1, age_s=1),))
    decided = decide((fresh,), (waiting("b", age_s=100),), hold={"w1": ("a",)})
    assert actions(decided) == ["wait"]


def test_pinned_model_is_loaded_unasked_and_never_leaves() -> None:
    offers = (offer("p", 1.5, pinned=True), offer("a", 1))
    first = decide((worker(offers),))
    assert first.placement.workers["w1"].hold == ("p",)
    decided = decide((worker(offers, (runner("p", 1.5),)),), (waiting("a", age_s=100),), hold={"w1": ("p",)})
    assert decided.placement.workers["w1"].hold == ("p",)
    assert "can free at most 512.0 MiB" in decided.refused()["a"].text


def test_model_larger_than_any_budget_is_refused_with_the_numbers() -> None:
    decided = decide((worker((offer("a", 3),)),), (waiting("a"),))
    assert "needs 3072.0 MiB" in decided.refused()["a"].text


def test_model_that_failed_everywhere_is_refused_with_its_reason() -> None:
    decided = decide((worker((offer("a", failure="truncated file"),)),), (waiting("a"),))
    assert decided.refused()["a"].text == "'a' can't be loaded: truncated file"


def test_failed_load_is_tried_again_after_its_pause() -> None:
    retryable = worker((offer("a", failure="truncated file", may_retry=True),))
    assert decide((retryable,), (waiting("a"),)).placement.workers["w1"].hold == ("a",)


def test_failed_load_is_tried_on_another_worker() -> None:
    workers = (worker((offer("a", failure="no memory"),), name="w1"), worker((offer("a"),), name="w2"))
    decided = decide(workers, (waiting("a"),), hold={"w1": ("a",)})
    assert decided.placement.workers["w2"].hold == ("a",)
    assert decided.placement.workers["w1"].hold == ()


def test_jobs_wait_while_no_worker_is_alive() -> None:
    assert actions(decide((), (waiting("a"),))) == ["wait"]


def test_idle_model_leaves_after_its_ttl() -> None:
    idle = worker((offer("a", ttl_s=4),), (runner("a", idle_s=5),))
    assert decide((idle,), hold={"w1": ("a",)}).placement.workers["w1"].evict == ("a",)
    assert decide((idle,), (waiting("a"),), hold={"w1": ("a",)}).placement.workers["w1"].evict == ()


def test_operator_can_warm_and_evict() -> None:
    cold = worker((offer("a"),))
    assert decide((cold,), asks={"a": "warm"}).placement.workers["w1"].hold == ("a",)
    warm = worker((offer("a"),), (runner("a"),))
    decided = decide((warm,), hold={"w1": ("a",)}, asks={"a": "evict"})
    assert decided.placement.workers["w1"] == WorkerPlacement(hold=(), evict=("a",))


def test_quarantined_model_leaves_and_comes_nowhere() -> None:
    offers = (offer("a", pinned=True), offer("b"))
    fleet = Fleet(now_ms=NOW_MS, workers=(worker(offers, (runner("a"),)), worker(offers, name="w2")))
    placement = Placement(epoch=1, workers={"w1": WorkerPlacement(hold=("a",))})
    decided = plan(
        fleet=fleet,
        demand=Demand(queues=(waiting("a"), waiting("b")), asks={"a": "warm"}, quarantined={"a": "it kills workers"}),
        placement=placement,
        state=PolicyState(),
    )
    assert decided.refused()["a"].text == "it kills workers"
    assert decided.placement.workers["w1"].evict == ("a",)
    assert not any("a" in each.hold for each in decided.placement.workers.values())
    assert any("b" in each.hold for each in decided.placement.workers.values())


def test_eviction_stays_on_record_until_the_runner_is_gone() -> None:
    offers = (offer("a"), offer("b"))
    placement = Placement(epoch=1, workers={"w1": WorkerPlacement(hold=("b",), evict=("a",))})
    fleet = Fleet(now_ms=NOW_MS, workers=(worker(offers, (runner("a"),)),))
    kept = plan(fleet=fleet, demand=Demand(), placement=placement, state=PolicyState())
    assert kept.placement.workers["w1"].evict == ("a",)
    gone = plan(
        fleet=Fleet(now_ms=NOW_MS, workers=(worker(offers),)), demand=Demand(), placement=placement, state=PolicyState()
    )
    assert gone.placement.workers["w1"].evict == ()


def test_draining_worker_gets_nothing() -> None:
    leaving = WorkerReport(
        id=WorkerId("w1"), pid=1, host="h", device="cpu", budget_bytes=GIB, used_bytes=0, started_ms=0,
        is_draining=True, offers=(offer("a"),),
    )  # fmt: skip
    assert decide((leaving,), (waiting("a"),)).placement.workers == {}


MODELS = [
    offer(name, size, pinned=name == "p") for name, size in [("a", 0.5), ("b", 1), ("c", 1.5), ("d", 2), ("p", 0.5)]
]


# Before so long nothing that waits has so much less slack than jobs that run, which are late for nothing.
LEAST_WAIT_MS = RULES.slack_margin_ms + RULES.slack_margin_per_load * LOAD_MS - LOAD_MS


@st.composite
def fleets(draw: st.DrawFn) -> tuple[WorkerReport, ...]:
    workers = []
    for name in draw(st.sampled_from([("w1",), ("w1", "w2")])):
        resident = draw(st.lists(st.sampled_from(MODELS), unique_by=lambda each: each.id))
        runners, used = [], 0.0
        for model in resident:
            if used + model.bytes <= 3 * GIB:
                used += model.bytes
                in_flight, idle_s, age_s = draw(st.tuples(st.integers(0, 2), st.integers(0, 90), st.integers(0, 90)))
                runners.append(runner(model.id, model.bytes / GIB, in_flight=in_flight, idle_s=idle_s, age_s=age_s))
        workers.append(worker(tuple(MODELS), tuple(runners), name=name, budget_gib=3))
    return tuple(workers)


@given(
    workers=fleets(),
    queues=st.lists(
        st.builds(waiting, st.sampled_from([each.id for each in MODELS]), st.integers(0, 40)),
        unique_by=lambda queue: queue.model,
    ),
)
@example(
    workers=(worker(tuple(MODELS), (runner("d", 2, in_flight=1, age_s=5),), budget_gib=3),), queues=[waiting("c", 3)]
)
def test_plan_keeps_the_budget_spares_the_pinned_and_repeats_itself(
    workers: tuple[WorkerReport, ...], queues: list[QueueReport]
) -> None:
    hold: dict[str, tuple[str, ...]] = {each.id: tuple(resident.model for resident in each.runners) for each in workers}
    decided = decide(workers, tuple(queues), hold=hold)
    assert decided == decide(workers, tuple(queues), hold=hold)
    size = {each.id: each.bytes for each in MODELS}
    for each in workers:
        desired = decided.placement.workers[each.id]
        staying = {resident.model for resident in each.runners} - set(desired.evict) | set(desired.hold)
        assert sum(size[model] for model in staying) <= each.budget_bytes
        assert "p" not in desired.evict
        for resident in each.runners:
            if resident.model in desired.evict and resident.in_flight:  # rule 5c at the earliest
                assert NOW_MS - resident.since_ms >= RULES.residency_floor_ms(LOAD_MS)
                assert any(queue.oldest_age_ms >= LEAST_WAIT_MS for queue in queues)
