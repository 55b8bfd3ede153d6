"""Guesses by prompt lookup: what is drafted, and how likely it is said to be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine import lookup
from workers.engine.lookup import Guess, PromptLookup


def draft_of(tokens: list[int], length: int = 4) -> list[int] | None:
    found = PromptLookup(tokens)
    return found.draft(length) if found.guess(length) else None


def test_draft_is_what_followed_the_last_two_tokens():
    assert draft_of([5, 1, 2, 7, 8, 9, 6, 1, 2]) == [7, 8, 9, 6]


def test_three_tokens_in_common_count_more_than_two_that_are_nearer():
    assert draft_of([3, 1, 2, 7, 8, 5, 1, 2, 9, 9, 3, 1, 2], 2) == [7, 8]


def test_nearest_of_equal_matches_is_taken():
    assert draft_of([3, 1, 2, 7, 3, 1, 2, 8, 3, 1, 2], 1) == [8]


def test_repetition_that_reaches_the_present_repeats_itself():
    assert draft_of([9, 1, 2, 3, 1, 2, 3, 1, 2], 5) == [3, 1, 2, 3, 1]
    assert draft_of([9, 4, 4, 4], 3) == [4, 4, 4]


@pytest.mark.parametrize("tokens", [[], [1], [1, 1], [1, 2, 3, 4, 5]])
def test_nothing_is_guessed_where_nothing_repeats(tokens: list[int]):
    assert draft_of(tokens) is None


def test_no_room_for_tokens_means_no_guess():
    assert PromptLookup([1, 2, 3, 1, 2]).guess(0) is None


def test_source_is_followed_token_by_token_and_left_at_the_first_difference():
    tokens = [1, 2, 3, 4, 5, 6, 1, 2]
    found = PromptLookup(tokens)
    for token, expected in [(3, [4, 5]), (4, [5, 6]), (99, None)]:
        assert found.guess(2)
        tokens.append(token)
        assert (found.draft(2) if found.guess(2) else None) == expected


def test_chances_follow_what_came():
    tokens = [*range(100), 0, 1]
    found = PromptLookup(tokens)
    before = found.guess(8)
    assert before is not None
    tokens += range(2, 50)
    after = found.guess(8)
    assert after is not None
    assert after.others > 0.95
    assert after.first == after.others  # the source was right before
    tokens += [700, 0, 1]
    again = found.guess(8)
    assert again is not None
    assert again.first != again.others


def test_expected_tokens_are_the_sum_of_the_chances():
    guess = Guess(length=3, first=0.5, others=0.8)
    assert guess.expected(2) == pytest.approx(0.5 + 0.5 * 0.8)
    assert guess.expected(9) == guess.expected(3) == pytest.approx(0.5 + 0.5 * 0.8 + 0.5 * 0.64)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=80), st.integers(1, 80), st.integers(1, 9))
def test_guess_is_the_same_whether_tokens_came_one_by_one_or_at_once(tokens: list[int], first: int, length: int):
    grown = tokens[:first]
    found = PromptLookup(grown)
    found.guess(length)
    for token in tokens[first:]:
        grown.append(token)
        found.guess(length)
    has_guess = found.guess(length) is not None
    # A source that is right is followed on, so only the presence of a guess and its form are the same.
    if draft_of(tokens, length) is not None:
        assert has_guess
    if has_guess:
        draft = found.draft(length)
        text = [*grown, *draft]
        end = len(grown)
        assert any(text[at : at + length] == draft for at in range(2, end))


def test_index_stays_bounded_and_finds_what_is_near(monkeypatch):
    monkeypatch.setattr(lookup, "LOOK_BACK", 50)
    rng = random.Random(1)
    tokens: list[int] = []
    found = PromptLookup(tokens)
    for _ in range(1000):
        tokens.append(rng.randrange(10**6))
        found.guess(1)
        assert len(found._pairs) <= 2 * lookup.LOOK_BACK
    tokens += tokens[-20:-10]
    assert found.guess(3)
    assert found.draft(3) == tokens[-20:-17]
