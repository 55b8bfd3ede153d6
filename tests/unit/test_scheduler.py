"""How a batch is shared out, and which slot a new sequence takes."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from tasks.jobs import Priority
from workers.engine.scheduler import (
    CRUMB,
    Demand,
    PrefillPace,
    PrefillRound,
    choose_slot,
    common_prefix,
    first_part,
    shares,
)

demands = st.lists(
    st.builds(
        Demand,
        pending=st.integers(1, 3) | st.integers(1, 60) | st.integers(1, 2000),
        level=st.sampled_from([0, 3, 6]),
        arrival=st.integers(1, 100),
    ),
    min_size=1,
    max_size=16,
    unique_by=lambda each: each.arrival,
)
SMALLEST = PrefillPace.SMALLEST_CHUNK
beginnings = st.lists(st.integers(0, 1), max_size=200)


def equals(*pending: int) -> list[Demand]:
    """Of one priority, in order of arrival."""
    return [Demand(tokens, Priority.DEFAULT, arrival) for arrival, tokens in enumerate(pending)]


@given(demands, st.integers(1, 600))
def test_every_generating_sequence_is_due_and_prefill_fills_its_chunk_up_to_a_crumb(demanded, chunk):
    due = shares(demanded, chunk)
    is_urgent = any(each.pending > 1 and each.level < Priority.BATCH for each in demanded)
    served = [not (is_urgent and each.level >= Priority.BATCH) for each in demanded]
    for given_, each, is_served in zip(due, demanded, served, strict=True):
        assert given_ == is_served if each.pending == 1 else given_ <= each.pending * is_served
    prefill = sum(given_ for given_, each in zip(due, demanded, strict=True) if each.pending > 1)
    demand = sum(each.pending for each, is_served in zip(demanded, served, strict=True) if is_served)
    demand -= sum(each.pending == 1 for each, is_served in zip(demanded, served, strict=True) if is_served)
    assert prefill <= min(chunk, demand) < prefill + 2 * CRUMB
    assert prefill or not demand


@given(demands, st.integers(1, 600))
def test_less_urgent_prompts_get_what_more_urgent_ones_leave(demanded, chunk):
    prompts = [each for each in demanded if each.pending > 1]
    due = shares(prompts, chunk)
    for level in (0, 3):
        demand = sum(each.pending for each in prompts if each.level <= level)
        got = sum(given_ for given_, each in zip(due, prompts, strict=True) if each.level <= level)
        assert got <= min(chunk, demand) < got + 2 * CRUMB


@given(demands, st.integers(1, 600))
def test_oldest_of_the_most_urgent_prompts_gets_its_even_share(demanded, chunk):
    due = shares(demanded, chunk)
    prompts = [(each, given_) for each, given_ in zip(demanded, due, strict=True) if each.pending > 1]
    level = min((each.level for each, _ in prompts), default=0)
    rivals = [(each, given_) for each, given_ in prompts if each.level == level]
    if rivals:
        oldest, got = min(rivals, key=lambda pair: pair[0].arrival)
        assert got >= min(oldest.pending, chunk // len(rivals) - CRUMB)


def test_batch_work_sits_out_the_steps_that_read_an_urgent_prompt():
    levels = [Priority.BATCH, Priority.INTERACTIVE, Priority.BATCH, Priority.DEFAULT]
    assert shares([*map(Demand, [1, 1, 40, 30], levels)], 512) == [0, 1, 0, 30]
    assert shares([*map(Demand, [1, 1, 40, 1], levels)], 512) == [1, 1, 40, 1]


def test_short_prompt_is_done_in_one_step_beside_a_long_one():
    assert shares(equals(5000, 20, 1), 512) == [492, 20, 1]


def test_shortest_rest_is_read_first_and_one_prompt_after_the_other():
    assert shares(equals(40, 300, 100, 200), 250) == [40, 0, 100, 110]
    assert shares(equals(100, 100, 100), 150) == [100, 50, 0]


def test_crumb_of_a_prompt_is_not_worth_its_cost():
    assert shares(equals(22, 22, 22), 60) == [22, 22, 0]
    assert shares(equals(22, 22, 400), 60) == [22, 22, 16]
    assert shares(equals(22, 22, 400), 50) == [22, 22, 0]
    assert shares(equals(22, 300), 310) == [22, 284]  # and 16 remain
    assert shares(equals(22, 22), 5) == [5, 0]


@given(demands, st.integers(1, 600), st.integers(1, 100))
def test_first_part_is_of_whole_prompts_that_end_or_all_that_is_due(demanded, chunk, least):
    due = shares(demanded, chunk)
    part = first_part(demanded, due, least)
    if part != due:
        taken = [each for each, count in zip(demanded, part, strict=True) if count]
        assert all(count in (0, each.pending) for each, count in zip(demanded, part, strict=True))
        assert all(each.pending > 1 and each.level < Priority.BATCH for each in taken)
        assert sum(part) >= least


def test_prompts_are_read_in_parts_that_are_worth_a_step():
    demanded = equals(1, 22, 20, 21, 300)
    due = shares(demanded, 200)
    assert due == [1, 22, 20, 21, 137]
    assert first_part(demanded, due, 10) == [0, 0, 20, 0, 0]
    assert first_part(demanded, due, 40) == [0, 0, 20, 21, 0]
    assert first_part(demanded, due, 64) == due  # no part of so many tokens: the long prompt doesn't end
    assert first_part(equals(1, 20), [1, 20], 10) == [1, 20]
    batch = [Demand(20, Priority.BATCH, 1), Demand(20, Priority.BATCH, 2)]
    assert first_part(batch, [20, 20], 10) == [20, 20]


@given(st.lists(st.integers(2, 60), min_size=1, max_size=40), st.integers(1, 300), st.integers(1, 60))
def test_however_many_prompts_come_those_who_generate_have_their_token_in_each_round(lengths, chunk, least):
    """A new prompt comes with every part that was read."""
    round_ = PrefillRound()
    waiting, read = lengths[:2], 0
    for length in lengths[2:]:
        demanded = equals(1, *waiting)
        due = shares(demanded, round_.left(chunk))
        part = first_part(demanded, due, least)
        assert sum(part[1:]) + read <= max(chunk, read + 1)
        if part[0]:
            round_.end()
            read = 0
        else:
            round_.read(sum(part))
            read += sum(part)
        rests = [tokens - count for tokens, count in zip(waiting, part[1:], strict=True)]
        waiting = [max(2, rest) for rest in rests if rest] + [length]


def test_prefill_takes_a_few_times_as_long_as_the_step_of_those_who_wait_for_it():
    pace = PrefillPace(512)
    assert pace.chunk(generating=1, waiting=1) == PrefillPace.FIRST_CHUNK
    pace.measured(0, 4, 0.05)
    pace.measured(128, 0, 0.256)  # 2 ms per token
    assert pace.chunk(generating=4, waiting=1) == 100
    assert pace.chunk(generating=1, waiting=1) == 88  # three tokens less
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
    assert pace.chunk(generating=8, waiting=1) == 100


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


def test_several_prompts_may_take_so_many_times_longer_until_it_is_a_long_gap():
    pace = PrefillPace(2000)
    pace.measured(0, 1, 0.01)  # a step of one that generates
    pace.measured(100, 0, 0.1)  # 1 ms per prompt token
    assert pace.chunk(generating=1, waiting=1) == 40
    assert pace.chunk(generating=1, waiting=3) == 120
    assert pace.chunk(generating=1, waiting=0) == 40  # batch work
    pace.measured(0, 16, 0.175)  # 0.1 on average, where 0.025 were expected
    assert pace.chunk(generating=16, waiting=2) == 500  # LONGEST_BESIDE_S for each
    assert pace.chunk(generating=16, waiting=3) == 750
    assert pace.chunk(generating=16, waiting=50) == 900  # LONGEST_S with their step
    assert pace.chunk(generating=0, waiting=3) == 1000
    assert PrefillPace(512).chunk(generating=0, waiting=3) == PrefillPace.FIRST_CHUNK


def test_prompt_takes_a_few_times_as_long_as_a_step_of_as_many_as_generate_now():
    """The newest step without a prompt was of one sequence; since then, many have got their first token."""
    pace = PrefillPace(512)
    pace.measured(100, 0, 0.8)  # 8 ms per prompt token
    pace.measured(0, 1, 0.02)
    assert pace.chunk(generating=1, waiting=1) == SMALLEST
    assert pace.chunk(generating=11, waiting=1) == 50  # four times 20 + 10 * 8 ms
    pace.measured(100, 11, 0.9)  # of which the eleven are 100 ms
    assert pace.chunk(generating=11, waiting=1) == 50


@given(st.integers(1, 16), st.floats(1e-4, 1), st.integers(32, 512), st.floats(1e-4, 10), st.lists(st.integers(1, 16)))
def test_prompt_may_take_longer_beside_more_who_generate_but_not_more_than_in_proportion(
    measured, step_s, tokens, prompt_s, generating
):
    pace = PrefillPace(10**6)
    pace.measured(tokens, 0, prompt_s)
    pace.measured(0, measured, step_s)
    chunks = [pace.chunk(generating=each, waiting=1) for each in sorted(generating)]
    assert chunks == sorted(chunks)
    for few, many in combinations(sorted(generating), 2):
        least = max(SMALLEST, int(PrefillPace.IMPERCEPTIBLE_S * tokens / prompt_s))
        at_most = (pace.chunk(generating=few, waiting=1) + 1) * many / few
        assert pace.chunk(generating=many, waiting=1) <= max(least, at_most)


@given(st.lists(st.tuples(st.integers(0, 600), st.integers(1, 16), st.floats(1e-4, 5)), min_size=1), st.integers(0, 16))
def test_however_many_wait_a_round_takes_no_longer_than_the_longest_gap(measurements, waiting):
    """By what a prompt token is known to take, but for the smallest chunk."""
    pace = PrefillPace(10**6)
    for prompt_tokens, others, seconds in measurements:
        pace.measured(prompt_tokens, others, seconds)
    alone = pace.chunk(generating=0, waiting=1)  # LONGEST_S
    for generating in range(1, 17):
        assert SMALLEST <= pace.chunk(generating=generating, waiting=waiting) <= max(alone, SMALLEST)


def test_part_is_worth_a_step_when_its_tokens_take_a_few_times_as_long_as_a_step_without():
    pace = PrefillPace(512)
    assert pace.least_part() == 512
    pace.measured(100, 0, 0.1)  # 1 ms per prompt token
    assert pace.least_part() == 512
    pace.measured(0, 1, 0.006)
    assert pace.least_part() == 512
    pace.measured(0, 8, 0.028)  # 20 ms are not for the tokens
    assert pace.least_part() == 80
    pace.measured(0, 2, 0.012)  # 10 ms
    assert pace.least_part() == 60
    pace.measured(0, 2, 0.002)
    assert pace.least_part() == PrefillPace.SMALLEST_CHUNK
    gpu = PrefillPace(512)
    gpu.measured(512, 0, 0.015)
    gpu.measured(0, 2, 0.004)  # nothing is gained by smaller steps
    assert gpu.least_part() > 500


def test_short_prompts_do_not_count_as_a_measurement():
    pace = PrefillPace(512)
    pace.measured(3, 1, 1.0)
    assert pace.chunk(generating=1, waiting=1) == PrefillPace.FIRST_CHUNK


def test_gap_between_busy_slots_is_filled_first():
    assert choose_slot({0, 2, 4, 6}, {1, 3, 5}, [0, 0, 8, 0, 7, 0, 0]) == 4


def test_neighbour_of_a_busy_slot_is_preferred():
    assert choose_slot({0, 2, 3}, {4}, [0, 0, 0, 7, 0]) == 3


def test_slot_between_busy_runs_is_preferred_to_one_beyond_them():
    assert choose_slot({0, 4, 5, 9}, {1, 2, 3, 6, 7, 8}, [0, 0, 0, 0, 7, 5, 0, 0, 0, 0]) == 5


@given(
    st.sets(st.integers(0, 15), min_size=1), st.lists(st.integers(0, 9), min_size=16, max_size=16), st.integers(1, 16)
)
def test_as_many_newcomers_as_the_gaps_hold_leave_one_run_of_busy_slots(busy, used_at, newcomers):
    gaps = set(range(min(busy), max(busy))) - busy
    for number in range(min(newcomers, 16 - len(busy))):
        slot = choose_slot(set(range(16)) - busy, busy, used_at)
        assert slot in gaps or number >= len(gaps)
        busy = busy | {slot}
    if newcomers >= len(gaps):
        assert max(busy) - min(busy) + 1 == len(busy)


def test_longest_idle_slot_is_taken_otherwise():
    assert choose_slot({0, 1}, set(), [5, 2]) == 1


@given(beginnings, st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_common_prefix_is_the_longest(shared, left, right):
    left, right = shared + left, shared + right
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length in (len(left), len(right)) or left[length] != right[length]
