"""How a batch is shared out, and which slot a new sequence takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.scheduler import PrefillPace, choose_slot, common_prefix, shares

pending_counts = st.lists(st.integers(1, 2000), min_size=1, max_size=16)


@given(pending_counts, st.integers(1, 600), st.integers(0, 100))
def test_every_generating_sequence_gets_its_token_and_prefill_stays_in_its_chunk(pending, chunk, turn):
    granted = shares(pending, chunk, turn)
    assert all(given == 1 for given, wanted in zip(granted, pending, strict=True) if wanted == 1)
    assert all(given <= wanted for given, wanted in zip(granted, pending, strict=True))
    prefill = sum(given for given, wanted in zip(granted, pending, strict=True) if wanted > 1)
    demand = sum(wanted for wanted in pending if wanted > 1)
    assert prefill == min(chunk, demand)


@given(pending_counts, st.integers(1, 600), st.integers(0, 100))
def test_nobody_gets_more_than_one_token_beyond_a_prompt_that_wants_more(pending, chunk, turn):
    prompts = [
        (given, wanted) for given, wanted in zip(shares(pending, chunk, turn), pending, strict=True) if wanted > 1
    ]
    unsatisfied = [given for given, wanted in prompts if given < wanted]
    if unsatisfied:
        assert max(given for given, _ in prompts) <= min(unsatisfied) + 1


def test_short_prompt_is_done_in_one_step_beside_a_long_one():
    assert shares([5000, 20, 1], 512) == [492, 20, 1]


def test_who_is_served_rotates_when_prompts_outnumber_the_chunk():
    served = {index for turn in range(4) for index, given in enumerate(shares([9, 9, 9, 9], 1, turn)) if given}
    assert served == {0, 1, 2, 3}


def test_chunk_of_a_slow_device_is_cut_to_a_short_step():
    pace = PrefillPace(512)
    assert pace.chunk(others_generate=True) == PrefillPace.FIRST_CHUNK
    pace.measured(128, 0.256)  # 2 ms per token
    assert pace.chunk(others_generate=True) == 75
    assert pace.chunk(others_generate=False) == 500


def test_chunk_of_a_fast_device_is_the_configured_one():
    pace = PrefillPace(512)
    pace.measured(128, 0.001)
    assert pace.chunk(others_generate=True) == 512


def test_chunk_never_falls_below_a_useful_size():
    pace = PrefillPace(512)
    pace.measured(128, 60.0)
    assert pace.chunk(others_generate=True) == PrefillPace.SMALLEST_CHUNK
    assert PrefillPace(8).chunk(others_generate=True) == 8


def test_short_prompts_do_not_count_as_a_measurement():
    pace = PrefillPace(512)
    pace.measured(3, 1.0)
    assert pace.chunk(others_generate=True) == PrefillPace.FIRST_CHUNK


def test_longest_cached_prefix_wins():
    assert choose_slot({0: 10, 1: 40, 2: 0}, 50, set(), {0: 1, 1: 9, 2: 0}) == 1


def test_a_prefix_of_less_than_a_tenth_does_not_cost_another_its_cache():
    assert choose_slot({0: 3, 1: 0}, 100, set(), {0: 9, 1: 4}) == 1


def test_gap_between_busy_slots_is_filled_first():
    assert choose_slot({0: 0, 2: 0, 4: 0, 6: 0}, 10, {1, 3, 5}, {0: 0, 2: 8, 4: 7, 6: 0}) == 4


def test_neighbour_of_a_busy_slot_is_preferred():
    assert choose_slot({0: 0, 2: 0, 3: 0}, 10, {4}, {0: 0, 2: 0, 3: 7}) == 3


def test_longest_idle_slot_is_taken_otherwise():
    assert choose_slot({0: 0, 1: 0}, 10, set(), {0: 5, 1: 2}) == 1


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_common_prefix_is_the_longest(left, right):
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length in (len(left), len(right)) or left[length] != right[length]
