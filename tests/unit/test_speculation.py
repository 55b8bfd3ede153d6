"""When drafts pay: the policy on a machine whose step times are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workers.engine.lookup import Guess
from workers.engine.speculation import MAX_GENERATING, PLAIN_EVERY, Speculation

MAX = 8
SURE = Guess(length=MAX, first=0.95, others=0.95)
DOUBTFUL = Guess(length=MAX, first=0.2, others=0.3)

Machine = Callable[[int, int], float]  # seconds of a step of so many sequences with so many drafted tokens


def gpu(generating: int, drafted: int) -> float:
    return 0.02 * (1 + 0.01 * drafted)


def slow_cpu(generating: int, drafted: int) -> float:
    return 0.02 * (1 + drafted)


def batching_cpu(generating: int, drafted: int) -> float:
    return 0.02 * (2 + 0.3 * drafted if drafted else 1)


def lengths(policy: Speculation, guesses: list[Guess | None]) -> list[int]:
    """Of the next step's drafts."""
    if not policy.is_due(len(guesses)):
        return [0] * len(guesses)
    policy.decided()
    return policy.best(guesses).lengths


def drive(policy: Speculation, machine: Machine, guesses: list[Guess | None], steps: int = 200) -> list[int]:
    """The drafted tokens of each step."""
    drafted = []
    for _ in range(steps):
        drafted.append(sum(lengths(policy, guesses)))
        policy.measured(len(guesses), drafted[-1], machine(len(guesses), drafted[-1]))
    return drafted


def mostly(drafted: list[int]) -> int:
    return sorted(drafted)[len(drafted) // 2]


def test_sure_guesses_are_drafted_at_full_length_where_that_is_cheap():
    assert mostly(drive(Speculation(MAX), gpu, [SURE])) == MAX


def test_drafts_stop_where_each_token_costs_a_step():
    drafted = drive(Speculation(MAX), slow_cpu, [SURE], 1000)
    assert sum(1 for each in drafted[20:] if each) < 0.05 * len(drafted)


def test_one_trial_tells_what_other_lengths_cost():
    drafted = drive(Speculation(MAX), slow_cpu, [Guess(length=MAX, first=0.3, others=0.3)])
    assert sum(drafted) <= MAX
    assert sum(1 for each in drafted if each) == 1


def test_length_whose_cost_was_only_concluded_is_tried_in_the_end():
    def tiled(generating: int, drafted: int) -> float:
        return 0.02 * (1.02 if drafted <= 4 else 4) if drafted else 0.02

    drafted = drive(Speculation(MAX), tiled, [Guess(length=MAX, first=0.7, others=0.7)], 600)
    assert mostly(drafted[300:]) == 4


def test_same_machine_drafts_sure_guesses_and_no_doubtful_ones():
    policy = Speculation(MAX)
    assert mostly(drive(policy, batching_cpu, [SURE])) >= 6
    assert mostly(drive(policy, batching_cpu, [DOUBTFUL])) == 0
    assert mostly(drive(policy, batching_cpu, [SURE])) >= 6


def test_machine_that_changed_is_found_out():
    policy = Speculation(MAX)
    assert mostly(drive(policy, slow_cpu, [SURE])) == 0
    drive(policy, gpu, [SURE], 3000)
    assert mostly(drive(policy, gpu, [SURE])) == MAX
    drive(policy, slow_cpu, [SURE], 300)
    assert mostly(drive(policy, slow_cpu, [SURE])) == 0


def test_step_that_was_held_up_changes_little():
    policy = Speculation(MAX)
    drive(policy, gpu, [SURE], 100)
    policy.measured(1, MAX, 5.0)
    policy.measured(1, 0, 5.0)
    assert mostly(drive(policy, gpu, [SURE], 40)) >= MAX - 1


def test_first_step_goes_without_and_later_ones_now_and_then():
    drafted = drive(Speculation(MAX), gpu, [SURE], 10 * PLAIN_EVERY)
    assert drafted[0] == 0
    assert 5 <= drafted.count(0) <= 15


@pytest.mark.parametrize("generating", range(1, 9))
def test_drafts_keep_to_their_bound_and_to_their_sequences(generating: int):
    guesses: list[Guess | None] = [Guess(3, 0.9, 0.9) if index % 2 else None for index in range(generating)]
    policy = Speculation(MAX)
    for _ in range(50):
        chosen = lengths(policy, guesses)
        assert sum(chosen) <= MAX
        assert all(length <= 3 for length in chosen)
        assert all(guess or not length for guess, length in zip(guesses, chosen, strict=True))
        policy.measured(generating, sum(chosen), gpu(generating, sum(chosen)))
    assert any(lengths(policy, guesses)) == (2 <= generating <= MAX_GENERATING)


def test_without_room_for_drafts_nobody_needs_to_guess():
    assert Speculation(0).longest(1) == 0
    assert Speculation(MAX).longest(MAX_GENERATING + 1) == 0


def test_drafts_that_take_long_to_find_out_are_shorter_or_none():
    policy = Speculation(MAX)
    drive(policy, gpu, [SURE])
    cheap, dear, too_dear = (policy.best([SURE], position_s) for position_s in (0.0001, 0.012, 0.05))
    assert sum(cheap.lengths) == MAX
    assert 0 < sum(dear.lengths) < MAX
    assert cheap.speedup > dear.speedup > too_dear.speedup == 1.0
    assert too_dear.lengths == [0]


def test_clock_that_stands_still_does_no_harm():
    assert drive(Speculation(MAX), lambda generating, drafted: 0.0, [SURE], 50)[-1] == MAX
