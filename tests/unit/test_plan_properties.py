"""What holds for every plan, whatever fleet and demand: budgets, pinned models, replay, the bound on waiting."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.controller.decisions import Action
from tasks.controller.rules import Rules
from tasks.fleet import ModelOffer
from tests.support.plan_world import World

GIB = 2**30
RULES = Rules(interactive_target_ms=10_000, batch_target_ms=30_000)
MAX_TURN_MS = 1_000
TURN_MS = 250
HURRIED = Rules(interactive_target_ms=3_000, batch_target_ms=6_000, load_share=0.3)  # many turns in little time


def offer(model: str, gib: int, load_ms: int, *, pinned: bool = False) -> ModelOffer:
    return ModelOffer(id=model, context_length=64, slots=1, bytes=gib * GIB, load_ms=load_ms, pinned=pinned)


@dataclass(frozen=True)
class Story:
    offers: tuple[ModelOffer, ...]
    budgets: tuple[int, ...]
    drain_ms: int
    turns: list[tuple[int, list[tuple[int, int]]]]  # ms that pass, (model, priority) that get a job


@st.composite
def stories(draw: st.DrawFn) -> Story:
    sizes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=6))
    pinned = draw(st.booleans())
    offers = tuple(
        offer(f"m{number}", size, load * 1000, pinned=pinned and number == 0)
        for number, (size, load) in enumerate(sizes)
    )
    # Whatever is pinned, the largest other model fits beside it: what doesn't is refused, and waits for nothing.
    largest = max(each.bytes for each in offers) + (offers[0].bytes if pinned else 0)
    budgets = draw(
        st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda more: [largest + b * GIB for b in more])
    )
    jobs = st.lists(st.tuples(st.integers(0, len(offers) - 1), st.sampled_from([0, 3, 6])), max_size=3)
    turns = draw(st.lists(st.tuples(st.integers(50, MAX_TURN_MS), jobs), min_size=5, max_size=40))
    return Story(offers, tuple(budgets), draw(st.integers(0, 3_000)), turns)


def bound_ms(story: Story, rules: Rules) -> int:
    """T + n·(R + D + L), where every stage may be noticed a turn late."""
    load_ms = max(each.load_ms for each in story.offers)
    cycle_ms = rules.frame_ms(load_ms) + story.drain_ms + load_ms + 3 * MAX_TURN_MS
    return rules.batch_target_ms + MAX_TURN_MS + len(story.offers) * cycle_ms


@settings(max_examples=20, deadline=None)
@given(story=stories())
def test_every_model_that_somebody_waits_for_is_ready_within_the_bound(story: Story) -> None:
    world = World(story.offers, story.budgets, RULES, story.drain_ms)
    limit_ms = bound_ms(story, RULES)
    for elapsed_ms, jobs in story.turns:
        for model, priority in jobs:
            world.arrive(f"m{model}", priority)
        world.turn(elapsed_ms)
    for _ in range(limit_ms // 500 + 1):  # no more jobs, but whatever is ready stays busy for ever
        if not world.absent_ms:
            break
        for number in range(0, len(story.offers), 2):  # and half of the models get new jobs all the time
            world.arrive(f"m{number}")
        world.turn(500)
        assert all(world.now_ms - since_ms <= limit_ms for since_ms in world.absent_ms.values())
    assert world.longest_ms <= limit_ms


class Adversary(Enum):
    """Who gets a job next, seen from what the plan has just done."""

    LAST_EVICTED = "the model that had to leave last"
    ABSENT = "all that are not ready"
    ALL = "everybody"
    LARGEST = "the model with the most bytes"

    def targets(self, world: World) -> list[str]:
        names = [each.id for each in world.offers]
        match self:
            case Adversary.LAST_EVICTED:
                return [world.last_evicted or names[0]]
            case Adversary.ABSENT:
                return [name for name in names if not world.is_ready(name)]
            case Adversary.ALL:
                return names
            case Adversary.LARGEST:
                return [max(world.offers, key=lambda each: (each.bytes, each.id)).id]


@settings(max_examples=20, deadline=None)
@given(
    story=stories(),
    attacks=st.lists(st.tuples(st.sampled_from(Adversary), st.sampled_from([0, 6])), min_size=1, max_size=6),
    reports_late=st.booleans(),
)
def test_nobody_waits_longer_than_for_those_who_were_overdue_before_him(
    story: Story, attacks: list[tuple[Adversary, int]], reports_late: bool
) -> None:
    """The bound to the letter: a model is ready within n frames, drains and loads from when it became overdue, with n
    the models that were overdue before it, itself included; whoever asks for what, and however late workers report.
    One worker, on which the largest model fits alone: there everybody is in everybody's way."""
    largest = max(each.bytes for each in story.offers)
    offers = tuple(msgspec.structs.replace(each, pinned=False) for each in story.offers)
    world = World(offers, (largest,), HURRIED, story.drain_ms, reports_late=reports_late)
    load_ms = max(each.load_ms for each in offers)
    cycle_ms = HURRIED.frame_ms(load_ms) + story.drain_ms + load_ms + 4 * TURN_MS
    ready_by_ms: dict[str, int] = {}  # of overdue models
    for number in range(360):
        adversary, priority = attacks[number // 30 % len(attacks)]
        for model in adversary.targets(world):
            world.arrive(model, priority)
        world.turn(TURN_MS)
        overdue = overdue_since_ms(world)
        ready_by_ms = {model: at_ms for model, at_ms in ready_by_ms.items() if model in overdue}
        for model, since_ms in overdue.items():
            ahead = sum(other_ms <= since_ms for other_ms in overdue.values())
            ready_by_ms.setdefault(model, since_ms + ahead * cycle_ms)
            assert world.now_ms <= ready_by_ms[model]


def overdue_since_ms(world: World) -> dict[str, int]:
    """Absent models with a job past its target, and since when; their turn counts from when they last left."""
    found: dict[str, int] = {}
    for (model, priority), since_ms in world.waiting_ms.items():
        at_ms = max(since_ms, world.absent_ms.get(model, since_ms)) + world.rules.target_ms(priority)
        if model in world.absent_ms and at_ms <= world.now_ms:
            found[model] = min(at_ms, found.get(model, at_ms))
    return found


@settings(max_examples=20, deadline=None)
@given(story=stories())
def test_a_runner_with_work_stays_for_the_residency_floor_however_late_its_worker_reports(story: Story) -> None:
    """Without that, two models that both wait would load for ever and never serve."""
    world = World(story.offers, story.budgets[:1], RULES, story.drain_ms, reports_late=True)
    for _ in range(120):
        for model in Adversary.ABSENT.targets(world):  # for those that are ready nothing waits: all of it was claimed
            world.arrive(model)
        world.turn(500)
    if world.shortest_ms is not None:
        assert world.shortest_ms >= RULES.residency_floor_ms(min(each.load_ms for each in story.offers))


@settings(max_examples=8, deadline=None)
@given(story=stories(), load_share=st.sampled_from([0.1, 0.2, 0.3]))
def test_forced_rotation_spends_no_more_than_its_share_on_loads(story: Story, load_share: float) -> None:
    """Everybody waits, nobody has slack: models rotate, and each worker loads for at most the share φ of the time
    (beside the start, and the bucket's debt)."""
    rules = Rules(interactive_target_ms=1_000, batch_target_ms=1_000, load_share=load_share, bucket_cap_ms=0)
    world = World(story.offers, story.budgets, rules, story.drain_ms)
    minutes_ms = 180_000
    for _ in range(minutes_ms // 1000):
        for each in story.offers:
            world.arrive(each.id)
        world.turn(1000)
    at_start_ms = sum(each.load_ms for each in story.offers) * len(story.budgets)
    # Several small models side by side rotate independently, each within its share.
    places = sum(max(1, budget // min(each.bytes for each in story.offers)) for budget in story.budgets)
    assert world.load_ms <= at_start_ms + places * load_share * minutes_ms


@settings(max_examples=20, deadline=None)
@given(story=stories())
def test_waits_are_explained_and_loads_are_never_doubled(story: Story) -> None:
    world = World(story.offers, story.budgets, RULES, story.drain_ms)
    for elapsed_ms, jobs in story.turns:
        for model, priority in jobs:
            world.arrive(f"m{model}", priority)
        decided = world.turn(elapsed_ms)
        spoken = {each.model for each in decided.decisions}
        assert {model for model, _ in world.waiting_ms} <= spoken
        assert all(each.text and each.at_ms == world.now_ms for each in decided.decisions)
        loads = [each.model for each in decided.decisions if each.action is Action.LOAD]
        assert len(loads) == len(set(loads))
        for number in range(len(story.offers)):  # max_replicas is 1
            holders = [name for name, each in world.placement.workers.items() if f"m{number}" in each.hold]
            assert len(holders) <= 1
