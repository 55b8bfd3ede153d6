"""How a batch is shared out, and which slot a new sequence takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.jobs import Priority
from workers.engine.scheduler import PrefillPace, choose_slot, common_prefix, shares

demands = st.lists(st.tuples(st.integers(1, 2000), st.sampled_from([0, 3, 6])), min_size=1, max_size=16)
pending_counts = st.lists(st.integers(1, 2000), min_size=1, max_size=16)


beginnings = st.lists(st.integers(0, 1), max_size=200)


def equal_shares(pending: list[int], chunk: int, turn: int = 0) -> list[int]:
    return shares(pending, [3] * len(pending), chunk, turn)


@given(demands, st.integers(1, 600), st.integers(0, 100))
def test_every_generating_sequence_gets_its_token_and_prefill_stays_in_its_chunk(demanded, chunk, turn):
    pending = [tokens for tokens, _ in demanded]
    levels = [level for _, level in demanded]
    granted = shares(pending, levels, chunk, turn)
    is_urgent = any(tokens > 1 and level < Priority.BATCH for tokens, level in demanded)
    served = [not (is_urgent and level >= Priority.BATCH) for level in levels]
    assert all(
        given == is_served for given, wanted, is_served in zip(granted, pending, served, strict=True) if wanted == 1
    )
    assert all(given <= wanted * is_served for given, wanted, is_served in zip(granted, pending, served, strict=True))
    prefill = sum(given for given, wanted in zip(granted, pending, strict=True) if wanted > 1)
    demand = sum(wanted for wanted, is_served in zip(pending, served, strict=True) if wanted > 1 and is_served)
    assert prefill == min(chunk, demand)


@given(demands, st.integers(1, 600), st.integers(0, 100))
def test_less_urgent_prompts_get_what_more_urgent_ones_leave(demanded, chunk, turn):
    prompts = [(tokens, level) for tokens, level in demanded if tokens > 1]
    granted = shares([tokens for tokens, _ in prompts], [level for _, level in prompts], chunk, turn)
    for level in (0, 3):
        demand = sum(tokens for tokens, each in prompts if each <= level)
        got = sum(given for given, (_, each) in zip(granted, prompts, strict=True) if each <= level)
        assert got == min(chunk, demand)


@given(pending_counts, st.integers(1, 600), st.integers(0, 100))
def test_nobody_gets_more_than_one_token_beyond_a_prompt_that_wants_more(pending, chunk, turn):
    prompts = [
        (given, wanted) for given, wanted in zip(equal_shares(pending, chunk, turn), pending, strict=True) if wanted > 1
    ]
    unsatisfied = [given for given, wanted in prompts if given < wanted]
    if unsatisfied:
        assert max(given for given, _ in prompts) <= min(unsatisfied) + 1


def test_batch_work_sits_out_the_steps_that_read_an_urgent_prompt():
    levels = [Priority.BATCH, Priority.INTERACTIVE, Priority.BATCH, Priority.DEFAULT]
    assert shares([1, 1, 40, 30], levels, 512) == [0, 1, 0, 30]
    assert shares([1, 1, 40, 1], levels, 512) == [1, 1, 40, 1]


def test_short_prompt_is_done_in_one_step_beside_a_long_one():
    assert equal_shares([5000, 20, 1], 512) == [492, 20, 1]


def test_who_is_served_rotates_when_prompts_outnumber_the_chunk():
    served = {index for turn in range(4) for index, given in enumerate(equal_shares([9, 9, 9, 9], 1, turn)) if given}
    assert served == {0, 1, 2, 3}


def test_prefill_takes_a_few_times_as_long_as_the_step_of_those_who_wait_for_it():
    pace = PrefillPace(512)
    assert pace.chunk(generating=1, waiting=1) == PrefillPace.FIRST_CHUNK
    pace.measured(0, 4, 0.05)
    pace.measured(128, 0, 0.256)  # 2 ms per token
    assert pace.chunk(generating=1, waiting=1) == 100
    assert pace.chunk(generating=0, waiting=1) == 500
    assert pace.chunk(generating=0, waiting=1, is_brief=True) == 125


def test_gap_that_nobody_notices_is_always_allowed():
    pace = PrefillPace(512)
    pace.measured(0, 1, 0.001)
    pace.measured(128, 0, 0.0128)  # 0.1 ms per token
    assert pace.chunk(generating=1, waiting=1) == 300


def test_what_the_others_cost_is_not_counted_against_the_prompt():
    pace = PrefillPace(512)
    pace.measured(0, 8, 0.05)
    pace.measured(100, 8, 0.25)
    assert pace.chunk(generating=1, waiting=1) == 100


def test_no_step_takes_longer_than_a_cancel_may_wait():
    pace = PrefillPace(512)
    pace.measured(0, 1, 2.0)
    pace.measured(64, 0, 0.64)  # 10 ms per token
    assert pace.chunk(generating=1, waiting=1) == 100


def test_chunk_of_a_fast_device_is_the_configured_one():
    pace = PrefillPace(512)
    pace.measured(128, 0, 0.001)
    assert pace.chunk(generating=1, waiting=1) == 512


def test_chunk_never_falls_below_a_useful_size():
    pace = PrefillPace(512)
    pace.measured(128, 0, 60.0)
    assert pace.chunk(generating=1, waiting=1) == PrefillPace.SMALLEST_CHUNK
    assert PrefillPace(8).chunk(generating=1, waiting=1) == 8


def test_burst_of_prompts_beside_few_generating_ones_takes_longer_steps() -> None:
    pace = PrefillPace(512)
    pace.measured(0, 1, 0.01)  # a step of those who generate
    pace.measured(100, 0, 0.1)  # 1 ms per prompt token
    assert pace.chunk(generating=1, waiting=1) == 40
    assert pace.chunk(generating=1, waiting=3) == 120
    assert pace.chunk(generating=6, waiting=3) == 40
    assert pace.chunk(generating=1, waiting=50) == 250  # LONGEST_BESIDE_S


def test_short_prompts_do_not_count_as_a_measurement():
    pace = PrefillPace(512)
    pace.measured(3, 1, 1.0)
    assert pace.chunk(generating=1, waiting=1) == PrefillPace.FIRST_CHUNK


def test_gap_between_busy_slots_is_filled_first():
    assert choose_slot({0, 2, 4, 6}, {1, 3, 5}, [0, 0, 8, 0, 7, 0, 0]) == 4


def test_neighbour_of_a_busy_slot_is_preferred():
    assert choose_slot({0, 2, 3}, {4}, [0, 0, 0, 7, 0]) == 3


def test_longest_idle_slot_is_taken_otherwise():
    assert choose_slot({0, 1}, set(), [5, 2]) == 1


@given(beginnings, st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_common_prefix_is_the_longest(shared, left, right):
    left, right = shared + left, shared + right
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length in (len(left), len(right)) or left[length] != right[length]
