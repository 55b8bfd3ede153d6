"""The controller's rules one by one: victims, replicas, fallbacks, pauses, devices, and the races of placement."""

from __future__ import annotations

import msgspec
import pytest

from tasks.controller.decisions import SLOTS_TAKEN, Action, Code, Decision
from tasks.controller.demand import Demand
from tasks.controller.plan import RULES, Plan, plan
from tasks.controller.policy_state import PolicyState, Rate
from tasks.controller.rules import Rules
from tasks.fleet import (
    ClassBacklog,
    Fleet,
    ModelKind,
    ModelOffer,
    Placement,
    QueueReport,
    RunnerReport,
    RunnerState,
    WorkerPlacement,
    WorkerReport,
)
from tasks.jobs import Priority, WorkerId
from tests.support.plan_world import World

NOW_MS = 1_000_000_000
GIB = 2**30


def offer(model: str, gib: float = 1, **fields: object) -> ModelOffer:
    values = {"context_length": 4096, "slots": 4, "bytes": int(gib * GIB), "load_ms": 1000, **fields}
    return ModelOffer(id=model, **values)  # type: ignore[arg-type]


def runner(model: str, gib: float = 1, *, in_flight: int = 0, idle_s: float = 5, age_s: float = 600, **fields: object):
    values = {
        "pid": 1, "state": RunnerState.READY, "bytes": int(gib * GIB), "slots": 4, "in_flight": in_flight,
        "since_ms": NOW_MS - int(age_s * 1000), "idle_since_ms": None if in_flight else NOW_MS - int(idle_s * 1000),
        **fields,
    }  # fmt: skip
    return RunnerReport(model=model, **values)  # type: ignore[arg-type]


def worker(name: str, offers: tuple[ModelOffer, ...], *runners: RunnerReport, gib: float = 2, **fields: object):
    values = {"pid": 1, "host": name, "device": "cpu", "used_bytes": 0, "started_ms": 0, **fields}
    return WorkerReport(
        id=WorkerId(name), budget_bytes=int(gib * GIB), offers=offers, runners=runners, **values  # type: ignore[arg-type]
    )  # fmt: skip


def queue(model: str, age_s: float = 0.1, depth: int = 1, priority: int = 0) -> QueueReport:
    backlog = ClassBacklog(priority=priority, depth=depth, oldest_age_ms=int(age_s * 1000))
    return QueueReport(model=model, depth=depth, oldest_age_ms=backlog.oldest_age_ms, classes=(backlog,))


def decide(
    *workers: WorkerReport,
    queues: tuple[QueueReport, ...] = (),
    state: PolicyState | None = None,
    placement: Placement | None = None,
    rules: Rules = RULES,
    **demand: object,
) -> Plan:
    """What is resident is held, unless a placement says otherwise."""
    held = {
        str(each.id): WorkerPlacement(hold=tuple(sorted(resident.model for resident in each.runners)))
        for each in workers
    }
    return plan(
        demand=Demand(queues=queues, **demand),  # type: ignore[arg-type]
        fleet=Fleet(now_ms=NOW_MS, workers=workers),
        placement=placement or Placement(epoch=1, workers=held),
        state=state or PolicyState(),
        rules=rules,
    )


def only(decided: Plan, action: Action) -> Decision:
    (found,) = [each for each in decided.decisions if each.action is action]
    return found


# ---- victims


def test_model_of_least_value_per_byte_leaves_even_if_it_was_used_last() -> None:
    offers = (offer("hot"), offer("cold"), offer("new"))
    state = PolicyState(rates={"hot": Rate(0.5, 0.0, NOW_MS), "cold": Rate(0.01, 0.0, NOW_MS)})
    here = worker("w", offers, runner("hot", idle_s=30), runner("cold", idle_s=1))
    decided = decide(here, queues=(queue("new"),), state=state)
    assert decided.placement.workers["w"] == WorkerPlacement(hold=("hot", "new"), evict=("cold",))
    assert only(decided, Action.EVICT).terms["candidate"] == "new"


def test_victims_are_counted_in_bytes_not_in_models() -> None:
    offers = (offer("large", 4), offer("small", 1), offer("new", 1))
    here = worker("w", offers, runner("large", 4, idle_s=90), runner("small", 1, idle_s=30), gib=5)
    state = PolicyState(rates={"large": Rate(0.1, 0.0, NOW_MS), "small": Rate(0.01, 0.0, NOW_MS)})
    decided = decide(here, queues=(queue("new"),), state=state)
    assert decided.placement.workers["w"].evict == ("small",)


def test_victims_that_a_larger_one_makes_superfluous_stay() -> None:
    offers = (offer("s1"), offer("s2"), offer("large", 3), offer("new", 3))
    here = worker("w", offers, runner("s1", idle_s=50), runner("s2", idle_s=40), runner("large", 3, idle_s=30), gib=5)
    assert decide(here, queues=(queue("new"),)).placement.workers["w"].evict == ("large",)


def test_nothing_stops_before_the_whole_set_is_known_to_fit() -> None:
    offers = (offer("idle"), offer("busy"), offer("new", 2))
    here = worker("w", offers, runner("idle"), runner("busy", in_flight=1, age_s=0.5))
    decided = decide(here, queues=(queue("new"),))
    assert decided.placement.workers["w"].evict == ()
    assert only(decided, Action.WAIT).code in (Code.RESIDENCY, Code.BUSY_WITHIN_SLACK)


def test_bucket_of_load_time_stops_a_second_displacement() -> None:
    offers = (offer("a", 2, load_ms=9000), offer("b", 2, load_ms=9000))
    rules = Rules(load_share=0.2, bucket_cap_ms=10_000)
    here = worker("w", offers, runner("a", 2, in_flight=1, age_s=20))
    first = decide(here, queues=(queue("b", 5),), rules=rules)
    assert only(first, Action.LOAD).code is Code.BUSY_VICTIMS
    back = worker("w", offers, runner("b", 2, in_flight=1, age_s=20))
    second = decide(back, queues=(queue("a", 5),), state=first.state, rules=rules)
    assert only(second, Action.WAIT).code is Code.BUCKET_EMPTY


def test_overdue_model_claims_a_worker_so_that_nobody_overtakes_it() -> None:
    offers = (offer("x"), offer("big", 2), offer("small", 1))
    here = worker("w", offers, runner("x", in_flight=1, age_s=0.1))  # 1 GiB is free, the big one needs both
    decided = decide(here, queues=(queue("big", 30), queue("small", 1)))
    codes = {each.model: each.code for each in decided.decisions}
    assert codes == {"big": Code.RESIDENCY, "small": Code.CLAIMED}


# ---- races


def test_a_runner_whose_jobs_were_just_taken_is_not_idle_before_a_heartbeat_says_so() -> None:
    """Between the claim of a job and the next heartbeat nothing waits and nothing seems to run."""
    offers = (offer("a", 2), offer("b", 2))
    seen = decide(worker("w", offers, runner("a", 2, age_s=0.2, idle_s=9)), queues=(queue("a"), queue("b")))
    assert only(seen, Action.WAIT).code is Code.RESIDENCY
    taken = decide(worker("w", offers, runner("a", 2, age_s=0.2, idle_s=9)), queues=(queue("b"),), state=seen.state)
    assert taken.placement.workers["w"].hold == ("a",)
    done = decide(worker("w", offers, runner("a", 2, age_s=0.2, idle_s=-0.1)), queues=(queue("b"),), state=seen.state)
    assert only(done, Action.LOAD).code is Code.IDLE_VICTIMS


def test_a_job_that_no_plan_saw_waiting_makes_its_runner_busy_too() -> None:
    offers = (offer("a", 2), offer("b", 2))
    idle = worker("w", offers, runner("a", 2, idle_s=30))
    arrived = decide(idle, queues=(queue("b"),), arrivals={("a", 0): 1})
    assert only(arrived, Action.WAIT).code is Code.RESIDENCY
    finished = worker("w", offers, runner("a", 2, idle_s=0.1))
    assert only(decide(finished, queues=(queue("b"),), arrivals={("a", 0): 1}), Action.LOAD).code is Code.IDLE_VICTIMS


def test_a_job_that_went_elsewhere_keeps_its_runner_for_a_moment_only() -> None:
    offers = (offer("a", 2), offer("b", 2))
    here = worker("w", offers, runner("a", 2, idle_s=30))
    for age_ms, is_there in ((RULES.report_ms - 1, True), (RULES.report_ms, False)):
        decided = decide(here, queues=(queue("b"),), state=PolicyState(asked_ms={"a": NOW_MS - age_ms}))
        assert ("a" in decided.placement.workers["w"].hold) == is_there


def test_work_that_is_parked_waits_from_then_on_however_old_it_is() -> None:
    """The victim's only job runs, so nothing of it waits when it leaves; its age must not bring it to the front."""
    offers = (offer("a", 2), offer("b", 2), offer("c", 2))
    first = decide(worker("w", offers, runner("a", 2, in_flight=1)), queues=(queue("b", 30),))
    assert first.placement.workers["w"].evict == ("a",)
    gone = worker("w", offers, runner("b", 2, in_flight=1))
    back = decide(gone, queues=(queue("a", 90), queue("c", 20)), state=first.state)
    assert only(back, Action.LOAD).model == "c"


def test_draining_victim_is_not_revived_by_new_traffic() -> None:
    offers = (offer("a", 2), offer("b", 2))
    leaving = worker("w", offers, runner("a", 2, in_flight=1))
    before = Placement(epoch=1, workers={"w": WorkerPlacement(hold=("b",), evict=("a",))})
    decided = decide(leaving, queues=(queue("a", 30), queue("b", 30)), placement=before)
    assert decided.placement.workers["w"] == WorkerPlacement(hold=("b",), evict=("a",))


def test_one_eviction_does_not_hold_up_other_loads() -> None:
    offers = (offer("a", 2), offer("b", 2), offer("c", 1))
    first = worker("w1", offers, runner("a", 2, in_flight=1))
    second = worker("w2", offers, gib=1)
    before = Placement(epoch=1, workers={"w1": WorkerPlacement(hold=("b",), evict=("a",)), "w2": WorkerPlacement()})
    decided = decide(first, second, queues=(queue("b"), queue("c")), placement=before)
    assert decided.placement.workers["w2"].hold == ("c",)


def test_several_devices_of_a_host_load_at_the_same_time() -> None:
    offers = (offer("a", 2), offer("b", 2))
    devices = [worker(name, offers, host="h", device=f"cuda:{name}") for name in ("0", "1")]
    decided = decide(*devices, queues=(queue("a"), queue("b")))
    assert sorted(each.hold for each in decided.placement.workers.values()) == [("a",), ("b",)]


def test_bytes_are_reserved_before_a_load_begins() -> None:
    offers = (offer("a", 1.5), offer("b", 1.5))
    before = Placement(epoch=1, workers={"w": WorkerPlacement(hold=("a",))})  # decided, and nothing of it seen yet
    decided = decide(worker("w", offers), queues=(queue("a"), queue("b")), placement=before)
    assert decided.placement.workers["w"].hold == ("a",)


def test_many_waiting_jobs_load_one_copy() -> None:
    workers = [worker(f"w{number}", (offer("a", max_replicas=4),)) for number in range(4)]
    first = decide(*workers, queues=(queue("a", depth=4),))
    second = decide(*workers, queues=(queue("a", depth=8),), placement=first.placement, state=first.state)
    assert sum(each.hold == ("a",) for each in second.placement.workers.values()) == 1


def test_bytes_of_a_crashed_runner_are_free_at_once() -> None:
    offers = (offer("a", 2), offer("b", 2))
    before = Placement(epoch=1, workers={"w": WorkerPlacement(evict=("a",))})
    decided = decide(worker("w", offers), queues=(queue("b"),), placement=before)
    assert only(decided, Action.LOAD).code is Code.ROOM


def test_models_in_turn_don_t_thrash() -> None:
    """A-B-A-C on a worker with one place, everybody busy for ever: loads take their share of the time, no more."""
    rules = Rules(load_share=0.1)
    world = World(tuple(offer(name, 1, load_ms=2000, slots=1) for name in "abc"), (GIB,), rules, drain_ms=500)
    for _ in range(1200):
        for name in "abac":
            world.arrive(name)
        world.turn(500)
    assert world.loads >= 10
    assert world.load_ms <= rules.load_share * 600_000 + rules.bucket_cap_ms + 3 * 2000


# ---- replicas


FULL = runner("a", in_flight=4)


def replicable(**fields: object) -> ModelOffer:
    return offer("a", **{"load_ms": 2000, "max_replicas": 2, **fields})  # type: ignore[arg-type]


def test_replica_is_loaded_when_the_line_outweighs_a_load() -> None:
    workers = (worker("w1", (replicable(),), FULL), worker("w2", (replicable(),)))
    short = decide(*workers, queues=(queue("a", depth=2),), service_ms={"a": 4000})
    assert only(short, Action.KEEP).code is Code.QUEUE_TOO_SHORT
    long = decide(*workers, queues=(queue("a", depth=20),), service_ms={"a": 4000})
    assert only(long, Action.LOAD).code is Code.REPLICA
    assert long.placement.workers["w2"].hold == ("a",)


@pytest.mark.parametrize(
    ("age_s", "ready_s", "measured", "code"),
    [
        (3.5, 600, {}, Code.QUEUE_TOO_SHORT),  # a load of 2 s and 2 s more
        (12, 600, {}, Code.REPLICA),
        (12, 600, {"a": 50}, Code.REPLICA),  # jobs were short before, and are not now
        (12, 1, {}, Code.QUEUE_TOO_SHORT),  # they waited for the load
    ],
)
def test_a_line_whose_head_waits_behind_full_slots_shows_how_long_it_takes(
    age_s: float, ready_s: float, measured: dict[str, float], code: Code
) -> None:
    full = runner("a", in_flight=4, age_s=ready_s)
    workers = (worker("w1", (replicable(),), full), worker("w2", (replicable(),)))
    decided = decide(*workers, queues=(queue("a", age_s, depth=4),), service_ms=measured)
    assert decided.decisions[0].code is code


def test_a_wait_alone_sends_no_other_model_away_for_a_replica() -> None:
    offers = (replicable(), offer("b", 2))
    workers = (worker("w1", offers, FULL), worker("w2", offers, runner("b", 2)))
    decided = decide(*workers, queues=(queue("a", 60, depth=4),))
    assert only(decided, Action.KEEP).code is Code.REPLICA_TOO_DEAR


def test_batch_jobs_that_give_way_show_nothing_about_the_line() -> None:
    classes = tuple(
        ClassBacklog(priority=priority, depth=2, oldest_age_ms=age_ms) for priority, age_ms in ((0, 500), (6, 99_000))
    )
    line = QueueReport(model="a", depth=4, oldest_age_ms=99_000, classes=classes)
    workers = (worker("w1", (replicable(),), FULL), worker("w2", (replicable(),)))
    assert only(decide(*workers, queues=(line,)), Action.KEEP).code is Code.QUEUE_TOO_SHORT


def test_replica_is_not_worth_more_valuable_models() -> None:
    offers = (replicable(), offer("b", 2, load_ms=60_000))
    state = PolicyState(rates={"b": Rate(1.0, 0.0, NOW_MS)})
    workers = (worker("w1", offers, FULL), worker("w2", offers, runner("b", 2)))
    decided = decide(*workers, queues=(queue("a", depth=8),), service_ms={"a": 3000}, state=state)
    assert only(decided, Action.KEEP).code is Code.REPLICA_TOO_DEAR


def narrow(in_flight: int = 1) -> RunnerReport:
    """Ready with one of four slots."""
    return runner("a", 1, in_flight=in_flight, closed_slots=3, slot_bytes=GIB // 2)


def test_worker_opens_a_slot_itself_where_there_is_memory_for_it() -> None:
    here = worker("w", (offer("a", 2.5), offer("b")), narrow(), runner("b"), gib=2.5)
    decided = decide(here, queues=(queue("a", depth=9),), service_ms={"a": 2000})
    assert only(decided, Action.KEEP).code is Code.SLOTS_FREE
    assert decided.placement.workers["w"].hold == ("a", "b")


@pytest.mark.parametrize(("depth", "leaves"), [(9, True), (1, False)])
def test_idle_model_leaves_for_a_slot_that_saves_more_waiting_than_it_is_worth(depth: int, leaves: bool) -> None:
    offers = (offer("a", 2.5, max_replicas=1), offer("b", load_ms=4000))
    here = worker("w", offers, narrow(), runner("b"), gib=2)
    state = PolicyState(rates={"b": Rate(0.05, 0.0, NOW_MS)})
    decided = decide(here, queues=(queue("a", depth=depth),), service_ms={"a": 2000}, state=state)
    assert decided.placement.workers["w"].evict == (("b",) if leaves else ())
    if leaves:
        assert only(decided, Action.EVICT).terms["slot_bytes"] == GIB // 2


def test_batch_jobs_open_fewer_slots_than_people_do() -> None:
    offers = (offer("a", 2.5, max_replicas=1), offer("b", load_ms=4000))
    here = worker("w", offers, narrow(), runner("b"), gib=2)
    state = PolicyState(rates={"b": Rate(0.05, 0.0, NOW_MS)})
    for priority, leaves in ((Priority.DEFAULT, ("b",)), (Priority.BATCH, ())):
        line = queue("a", depth=4, priority=priority)
        decided = decide(here, queues=(line,), service_ms={"a": 2000}, state=state)
        assert decided.placement.workers["w"].evict == leaves


def test_load_that_no_longer_fits_since_slots_were_opened_is_placed_anew() -> None:
    offers = (offer("a", 2.5), offer("b"), offer("c", 1.0))
    grown = runner("a", 2, in_flight=3, closed_slots=1, slot_bytes=GIB // 2)
    held = Placement(epoch=1, workers={"w": WorkerPlacement(hold=("a", "b", "c"))})
    here = worker("w", offers, grown, runner("b", idle_s=99), gib=3)
    decided = decide(here, queues=(queue("c"),), placement=held)
    assert decided.placement.workers["w"] == WorkerPlacement(hold=("a", "c"), evict=("b",))
    assert only(decided, Action.LOAD).code is Code.IDLE_VICTIMS
    stuck = worker("w", offers, grown, runner("b", in_flight=1), gib=3)
    decided = decide(stuck, queues=(queue("c"),), placement=held)
    assert decided.placement.workers["w"].hold == ("a", "b")
    assert only(decided, Action.WAIT).model == "c"


def test_line_of_a_model_whose_slots_find_no_memory_takes_longer() -> None:
    here = worker("w", (offer("a", 2.5),), runner("a", 1, in_flight=1, closed_slots=3, slot_bytes=GIB // 2), gib=1.2)
    full = worker("w", (offer("a"),), FULL, gib=1.2)
    for each, line_ms in ((here, 8000), (full, 2000)):
        decided = decide(each, queues=(queue("a", depth=8),), service_ms={"a": 1000})
        assert only(decided, Action.KEEP).terms["line_ms"] == line_ms


def test_busy_model_stays_whatever_waits_for_a_slot() -> None:
    here = worker("w", (offer("a", 2.5), offer("b")), narrow(), runner("b", in_flight=1), gib=2)
    decided = decide(here, queues=(queue("a", depth=99),), service_ms={"a": 9000})
    assert decided.placement.workers["w"] == WorkerPlacement(hold=("a", "b"))


def test_closed_slots_leave_room_for_another_model() -> None:
    here = worker("w", (offer("a", 2.5), offer("c", 1.0)), narrow(in_flight=0), gib=2)
    decided = decide(here, queues=(queue("c"),))
    assert only(decided, Action.LOAD).code is Code.ROOM


def test_replicas_end_at_their_ceiling() -> None:
    workers = (worker("w1", (replicable(max_replicas=1),), FULL), worker("w2", (replicable(max_replicas=1),)))
    decided = decide(*workers, queues=(queue("a", depth=99),), service_ms={"a": 9000})
    assert only(decided, Action.KEEP).code is Code.REPLICA_CEILING


def test_idle_replica_leaves_and_the_last_copy_stays() -> None:
    idle_s = RULES.replica_idle_ms / 1000 + 1
    workers = [worker(name, (replicable(),), runner("a", idle_s=idle_s)) for name in ("w1", "w2")]
    decided = decide(*workers)
    assert [each.hold for each in decided.placement.workers.values()].count(("a",)) == 1
    assert only(decided, Action.EVICT).code is Code.EXTRA_REPLICA


def test_minimum_of_replicas_is_kept_warm_and_not_displaced() -> None:
    offers = (replicable(replicas=2), offer("b", 2))
    cold = [worker(name, offers) for name in ("w1", "w2", "w3")]
    decided = decide(*cold)
    assert [each.hold for each in decided.placement.workers.values()].count(("a",)) == 2
    warm = [worker(name, offers, runner("a", idle_s=999)) for name in ("w1", "w2")]
    assert decide(*warm, queues=(queue("b", 99),)).refused()["b"].code is Code.PINNED_IN_THE_WAY


# ---- failures, fallbacks, devices, hints


def test_model_that_fails_again_and_again_pauses_longer_and_is_refused() -> None:
    broken = tuple(
        worker(f"w{number}", (offer("a", failure="truncated") if number < 3 else offer("a"),)) for number in range(4)
    )
    state = PolicyState()
    codes = []
    for number in range(3):
        before = Placement(epoch=1, workers={f"w{number}": WorkerPlacement(hold=("a",))})
        decided = decide(*broken, queues=(queue("a"),), state=state, placement=before)
        state = decided.state
        codes.append(decided.decisions[0].code)
    assert codes == [Code.ROOM, Code.PAUSE_AFTER_FAILURE, Code.LOAD_FAILED]
    assert "3 loads in a row failed, the last one on w2: truncated" in decided.refused()["a"].text
    after = msgspec.structs.replace(broken[3], runners=(runner("a"),))
    assert decide(*broken[:3], after, state=state).state.failures == {}


def test_refused_model_hands_its_jobs_to_its_fallback() -> None:
    offers = (offer("a", failure="truncated", fallback="b"), offer("b"))
    decided = decide(worker("w", offers), queues=(queue("a"),))
    assert decided.fallbacks == {"a": "b"}
    assert decided.refused() == {}
    assert only(decided, Action.FALLBACK).terms["fallback"] == "b"


@pytest.mark.parametrize(
    ("others", "quarantined", "reason"),
    [
        ((), {}, "no live worker offers it"),
        ((offer("b", failure="b.gguf: cut off."),), {}, "b.gguf: cut off"),
        ((offer("b", 9),), {}, "'b' fits on no worker"),
        ((offer("b", kind=ModelKind.EMBED),), {}, "only text may come from another model"),
        ((offer("b"),), {"b": "it kills workers."}, "it kills workers"),
    ],
)
def test_refusal_says_why_the_fallback_can_not_answer_either(
    others: tuple[ModelOffer, ...], quarantined: dict[str, str], reason: str
) -> None:
    here = worker("w", (offer("a", failure="truncated", fallback="b"), *others))
    decided = decide(here, queues=(queue("a"), queue("b")), quarantined=quarantined)
    text = decided.refused()["a"].text
    assert text.startswith(f"'a' can't be loaded: truncated. Its fallback 'b' can't answer either: {reason}")
    assert ".." not in text


def test_late_model_hands_over_only_to_a_fallback_with_a_free_slot() -> None:
    offers = (offer("a", 2, fallback="b"), offer("b", 2))
    for in_flight, expected in ((3, {"a": "b"}), (4, {})):
        here = worker("w", offers, runner("b", 2, in_flight=in_flight, age_s=0.1))
        assert decide(here, queues=(queue("a", 9.5),)).fallbacks == expected


@pytest.mark.parametrize(
    ("age_s", "in_flight", "expected"),
    [
        (RULES.interactive_target_ms / 1000, 1, {"a": "b"}),
        (RULES.interactive_target_ms / 1000 - 0.1, 1, {}),  # within its target
        (99, 4, {}),  # the fallback is full too
    ],
)
def test_late_jobs_in_the_line_of_a_full_model_go_to_a_fallback_with_free_slots(
    age_s: float, in_flight: int, expected: dict[str, str]
) -> None:
    offers = (offer("a", fallback="b"), offer("b"))
    here = worker("w", offers, runner("a", in_flight=4), runner("b", in_flight=in_flight))
    decided = decide(here, queues=(queue("a", age_s, depth=9),))
    assert decided.fallbacks == expected
    assert decided.fallback_slots == dict.fromkeys(expected, 3)
    assert only(decided, Action.KEEP).code in SLOTS_TAKEN


def test_closed_slots_of_a_fallback_are_free_where_memory_is() -> None:
    offers = (offer("a", fallback="b"), offer("b"))
    half_open = runner("b", 1, in_flight=2, closed_slots=2, slot_bytes=GIB // 2)
    for gib, expected in ((2.6, {"a": 1}), (2.4, {})):
        here = worker("w", offers, runner("a", 1, in_flight=4), half_open, gib=gib)
        assert decide(here, queues=(queue("a", 99, depth=9),)).fallback_slots == expected


def test_late_jobs_of_a_model_with_free_slots_stay() -> None:
    offers = (offer("a", fallback="b"), offer("b"))
    here = worker("w", offers, runner("a", in_flight=3), runner("b"))
    assert decide(here, queues=(queue("a", 99),)).fallbacks == {}


@pytest.mark.parametrize("kinds", [(ModelKind.EMBED, ModelKind.GENERATE), (ModelKind.EMBED, ModelKind.EMBED)])
def test_only_text_goes_to_another_model(kinds: tuple[ModelKind, ModelKind]) -> None:
    for first, second in (kinds, kinds[::-1]):
        offers = (offer("a", failure="truncated", fallback="b", kind=first), offer("b", kind=second))
        decided = decide(worker("w", offers), queues=(queue("a"),))
        assert decided.fallbacks == {}
        assert decided.refused()["a"].code is Code.LOAD_FAILED


def test_jobs_wait_for_the_worker_that_offered_their_model_lately() -> None:
    other, away = worker("w", (offer("b"),)), {"a": offer("a")}
    decided = decide(other, queues=(queue("a"),), away=away)
    assert only(decided, Action.WAIT).code is Code.NO_WORKER
    assert decide(other, queues=(queue("a"),)).refused()["a"].code is Code.NOT_OFFERED


def test_overdue_jobs_of_a_worker_that_is_away_go_to_the_fallback() -> None:
    here = worker("w", (offer("b"),), runner("b"))
    assert decide(here, queues=(queue("a", 99),), away={"a": offer("a", fallback="b")}).fallbacks == {"a": "b"}


def test_model_goes_only_to_its_devices() -> None:
    bound = offer("a", devices=("cuda",))
    cpu, gpu = worker("w1", (bound,), gib=8), worker("w2", (bound,), device="cuda:0 H100")
    assert decide(cpu, gpu, queues=(queue("a"),)).placement.workers["w2"].hold == ("a",)
    refusal = decide(cpu, queues=(queue("a"),)).refused()["a"]
    assert refusal.code is Code.WRONG_DEVICE and "cuda only" in refusal.text


def test_load_cost_follows_the_measured_bandwidth_of_the_tier() -> None:
    slow, fast = (offer("a", file_bytes=10**9, load_ms=1, tier=tier) for tier in ("disk", "page_cache"))
    bandwidths = {"disk": 10**9, "page_cache": 10**10}
    workers = (
        worker("w1", (slow,), bandwidths=bandwidths, init_ms=200),
        worker("w2", (fast,), bandwidths=bandwidths, init_ms=200),
    )
    decided = only(decide(*workers, queues=(queue("a"),)), Action.LOAD)
    assert (decided.worker, decided.terms["load_ms"]) == ("w2", 300)


def test_likely_models_on_disk_are_named_for_the_page_cache_once_per_host() -> None:
    offers = tuple(offer(name, tier="disk") for name in "abcdef")
    state = PolicyState(rates={name: Rate(0.01 * number, 0.0, NOW_MS) for number, name in enumerate("abcdef")})
    workers = [worker(name, offers, runner("f"), host="h") for name in ("w1", "w2")]
    decided = decide(*workers, state=state)
    assert decided.placement.workers["w1"].prefetch == ("e", "d", "c")
    assert decided.placement.workers["w2"].prefetch == ()


def test_no_more_is_read_ahead_than_the_page_cache_has_room_for_beside_what_is_there() -> None:
    """Room for four files, and two are there, so two of the three on disk are named; what runs elsewhere is not needed
    here, likely as it is."""
    size = 10**9
    tiers = {"b": "disk", "c": "disk", "d": "disk", "e": "page_cache", "f": "page_cache", "g": "disk"}
    offers = tuple(offer(name, tier=tier, file_bytes=size) for name, tier in tiers.items())
    state = PolicyState(rates={name: Rate(0.01 * number, 0.0, NOW_MS) for number, name in enumerate("abcdefg")})
    here = worker("w1", offers, runner("f"), host="h1", cache_bytes=4 * size)
    elsewhere = worker("w2", (offer("g"),), runner("g"), host="h2")
    assert decide(here, elsewhere, state=state).placement.workers["w1"].prefetch == ("d", "c")


def test_nothing_is_read_ahead_where_the_room_is_not_known() -> None:
    unknown = worker("w1", (offer("a", tier="disk", file_bytes=1),))
    state = PolicyState(rates={"a": Rate(0.1, 0.0, NOW_MS)})
    assert decide(unknown, state=state).placement.workers["w1"].prefetch == ()


def test_new_leader_goes_on_with_the_stored_state() -> None:
    demand = Demand(queues=(queue("a"),), arrivals={("a", 0): 3, ("a", 6): 1})
    fleet = Fleet(now_ms=NOW_MS, workers=(worker("w", (offer("a"),)),))
    first = plan(demand=demand, fleet=fleet, placement=Placement(), state=PolicyState())
    stored = msgspec.json.decode(msgspec.json.encode(first.state), type=PolicyState)
    assert stored == first.state
    assert stored.rate_per_s("a", NOW_MS, RULES) > 0
