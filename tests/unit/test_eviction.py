"""Whom to evict, and which loads may start now."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.eviction import Candidate, NoVictims, UseRate, Victims, choose_victims, keep_value
from workers.residency import ResidencySteps, Wanted, plan_residency


def runner(
    model: str,
    size: int = 10,
    *,
    value: float = 1.0,
    idle: bool = True,
    held: bool = False,
    pinned: bool = False,
    settled: bool = True,
) -> Candidate:
    return Candidate(
        model=model,
        bytes=size,
        keep_value=value,
        is_idle=idle,
        is_held=held,
        is_pinned=pinned,
        is_settled=settled,
    )


def victims(*candidates: Candidate, need: int, allow_busy: bool = False) -> tuple[str, ...] | str:
    answer = choose_victims(candidates, need, allow_busy=allow_busy)
    return answer.models if isinstance(answer, Victims) else answer.reason


def test_nothing_has_to_go_for_nothing() -> None:
    assert victims(runner("a"), need=0) == ()


def test_lowest_value_per_byte_goes_first() -> None:
    small, large = runner("small", 10, value=2), runner("large", 40, value=4)
    assert victims(small, large, need=10) == ("large",)


def test_ids_break_ties() -> None:
    assert victims(runner("b"), runner("a"), need=10) == ("a",)


def test_runner_that_became_unnecessary_stays() -> None:
    cheap, large = runner("cheap", 5, value=0), runner("large", 50, value=10)
    assert victims(cheap, large, need=50) == ("large",)


def test_only_idle_settled_unpinned_runners_that_nobody_holds_may_go() -> None:
    staying = (
        runner("pinned", pinned=True),
        runner("held", held=True),
        runner("starting", settled=False),
        runner("busy", idle=False),
    )
    assert victims(*staying, need=10) == (
        "pinned is pinned; held is held by the placement; starting is starting or leaving; busy is busy"
    )


def test_busy_runners_go_after_idle_ones_and_only_when_allowed() -> None:
    candidates = (runner("busy", value=0, idle=False), runner("idle", value=9))
    assert victims(*candidates, need=10, allow_busy=True) == ("idle",)
    assert victims(*candidates, need=20, allow_busy=True) == ("idle", "busy")
    assert victims(*candidates, need=20) == "busy is busy"


def test_impossible_without_anything_in_the_way_says_so() -> None:
    assert victims(runner("a"), need=11) == "nothing is left to evict"


def test_value_grows_with_use_and_with_the_cost_of_a_load() -> None:
    assert keep_value(rate_per_s=0, load_ms=1000) == 0
    assert keep_value(rate_per_s=1, load_ms=1000) > keep_value(rate_per_s=0.01, load_ms=1000)
    assert keep_value(rate_per_s=0.01, load_ms=9000) > keep_value(rate_per_s=0.01, load_ms=1000)


def test_use_rate_fades_and_nears_the_real_rate() -> None:
    rate = UseRate()
    for second in range(600):
        rate = rate.with_request(second * 1000)
    assert 0.95 < rate.per_s < 1.05
    assert rate.at(600_000 + 60_000).per_s < rate.per_s * 0.38
    assert rate.at(0).per_s == rate.per_s  # a clock that went back changes nothing


candidates_strategy = st.lists(
    st.builds(
        runner,
        st.sampled_from("abcdefgh"),
        st.integers(0, 50),
        value=st.floats(0, 10),
        idle=st.booleans(),
        held=st.booleans(),
        pinned=st.booleans(),
        settled=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda each: each.model,
)


@settings(max_examples=300, deadline=None)
@given(candidates=candidates_strategy, need=st.integers(-5, 120), allow_busy=st.booleans())
def test_victims_suffice_are_all_needed_and_exist_whenever_possible(
    candidates: list[Candidate], need: int, allow_busy: bool
) -> None:
    movable = {each.model: each for each in candidates if each.may_go and (each.is_idle or allow_busy)}
    answer = choose_victims(candidates, need, allow_busy=allow_busy)
    if isinstance(answer, NoVictims):
        assert sum(each.bytes for each in movable.values()) < need
        return
    freed = sum(movable[model].bytes for model in answer.models)
    assert freed >= need
    assert all(freed - movable[model].bytes < need for model in answer.models)


def plan(
    *wanted: Wanted,
    residents: tuple[Candidate, ...] = (),
    free: int,
    leaving: int = 0,
    disks_in_use: AbstractSet[int] = frozenset(),
) -> ResidencySteps:
    return plan_residency(
        wanted=wanted, residents=residents, free_bytes=free, leaving_bytes=leaving, disks_in_use=disks_in_use
    )


def want(model: str, size: int) -> Wanted:
    return Wanted(model=model, bytes=size)


def test_load_that_fits_starts() -> None:
    steps = plan(want("a", 10), free=10)
    assert (steps.load, steps.stop, steps.waiting) == (("a",), (), ())


def test_load_waits_for_bytes_that_are_leaving_and_stops_nothing_more() -> None:
    steps = plan(want("a", 10), residents=(runner("x"),), free=5, leaving=5)
    assert (steps.load, steps.stop, steps.waiting) == ((), (), ("a",))


def test_set_of_victims_is_chosen_before_anything_is_stopped() -> None:
    steps = plan(want("a", 30), residents=(runner("x"), runner("y", pinned=True)), free=10)
    assert steps.stop == ()
    assert steps.refused == {"a": "y is pinned"}


def test_small_load_overtakes_a_large_one_that_waits() -> None:
    steps = plan(want("big", 30), want("small", 5), residents=(runner("x", 30),), free=10)
    assert steps.load == ("small",)
    assert steps.waiting == ("big",)
    assert steps.stop == ("x",)


def test_small_load_never_eats_what_a_large_one_waits_for() -> None:
    steps = plan(want("big", 30), want("small", 5), free=10, leaving=20)
    assert steps.load == ()
    assert steps.waiting == ("big",)
    assert steps.refused == {"small": "nothing is left to evict"}


def test_load_waits_for_a_start_that_nobody_wants_any_more() -> None:
    steps = plan(want("a", 20), residents=(runner("x", 20, settled=False),), free=0)
    assert steps.waiting == ("a",)
    assert steps.refused == {}


def test_idle_victims_are_preferred_to_busy_ones() -> None:
    residents = (runner("busy", 20, value=0, idle=False), runner("idle", 20, value=5))
    assert plan(want("a", 20), residents=residents, free=0).stop == ("idle",)
    assert set(plan(want("a", 40), residents=residents, free=0).stop) == {"idle", "busy"}


def test_loads_of_one_disk_go_one_after_the_other_and_others_beside_them() -> None:
    wanted = [Wanted(model=name, bytes=10, disk=disk) for name, disk in (("a", 1), ("b", 1), ("c", 2), ("d", None))]
    steps = plan(*wanted, free=40)
    assert (steps.load, steps.waiting) == (("a", "c", "d"), ("b",))
    steps = plan(*wanted, free=40, disks_in_use={1})
    assert (steps.load, steps.waiting) == (("c", "d"), ("a", "b"))


def test_load_that_waits_for_its_disk_keeps_its_bytes() -> None:
    steps = plan(Wanted(model="a", bytes=10, disk=1), want("b", 10), free=10, disks_in_use={1})
    assert (steps.load, steps.waiting) == ((), ("a",))
    assert steps.refused == {"b": "nothing is left to evict"}


wanted_strategy = st.lists(
    st.builds(
        Wanted, model=st.sampled_from("qrstuv"), bytes=st.integers(1, 60), disk=st.sampled_from((None, None, 1, 2))
    ),
    max_size=5,
    unique_by=lambda w: w.model,
)


@settings(max_examples=300, deadline=None)
@given(wanted=wanted_strategy, residents=candidates_strategy, free=st.integers(0, 80), leaving=st.integers(0, 40))
def test_plan_never_starts_more_than_is_free_and_accounts_for_every_wish(
    wanted: list[Wanted], residents: list[Candidate], free: int, leaving: int
) -> None:
    steps = plan(*wanted, residents=tuple(residents), free=free, leaving=leaving)
    sizes = {each.model: each.bytes for each in wanted}
    by_model = {each.model: each for each in residents}
    assert sum(sizes[model] for model in steps.load) <= free
    disks = [each.disk for each in wanted if each.model in steps.load and each.disk is not None]
    assert len(set(disks)) == len(disks)
    groups = (steps.load, steps.waiting, tuple(steps.refused))
    assert sorted(model for group in groups for model in group) == sorted(sizes)
    assert all(not set(one) & set(other) for one, other in combinations(groups, 2))
    assert all(by_model[model].may_go for model in steps.stop)
    assert len(set(steps.stop)) == len(steps.stop)
