"""Output of fast steps shares a frame; first tokens, ends and slow steps wait for nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.base import EngineFailed
from workers.messages import Done, Step, TokenOut
from workers.step_frames import PATIENT_S, StepFrames

INTERVAL_S = 0.025
FAST_S, SLOW_S = INTERVAL_S / 3.9, INTERVAL_S * 1.01  # four fast steps are a little more than an interval


class Sent:
    """Frames with the times at which they were sent."""

    def __init__(self) -> None:
        self.now = 100.0
        self.frames: list[tuple[float, Step]] = []
        self.to = StepFrames(
            lambda step: self.frames.append((self.now, step)), interval_s=INTERVAL_S, clock=lambda: self.now
        )

    def step(self, *outputs: TokenOut | Done, after_s: float = FAST_S) -> None:
        self.now += after_s
        self.to.add(outputs)

    @property
    def ids(self) -> list[list[int]]:
        return [
            [token for out in step.outputs if isinstance(out, TokenOut) for token in out.ids] for _, step in self.frames
        ]


def token(number: int, key: int = 1) -> TokenOut:
    return TokenOut(key, f"t{number}", (number,))


def done(key: int = 1) -> Done:
    return Done(key=key, finish_reason="stop", prompt_tokens=1, completion_tokens=1)


def test_slow_steps_each_have_a_frame():
    sent = Sent()
    for number in range(4):
        sent.step(token(number), after_s=SLOW_S)
    assert sent.ids == [[0], [1], [2], [3]]


def test_fast_steps_share_frames():
    sent = Sent()
    for number in range(9):
        sent.step(token(number))
    assert sent.ids == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_first_token_of_any_sequence_goes_out_at_once_with_what_is_held():
    sent = Sent()
    sent.step(token(0))
    sent.step(token(1))
    sent.step(token(2), token(0, key=2))
    assert sent.ids == [[0], [1, 2, 0]]


def test_end_goes_out_at_once_and_a_reused_key_begins_anew():
    sent = Sent()
    sent.step(token(0))
    sent.step(token(1), done())
    sent.step(token(2))
    assert sent.ids == [[0], [1], [2]]


def test_tokens_of_batch_work_wait_longer_but_not_its_ends():
    sent = Sent()
    sent.to.let_wait(1)
    sent.step(token(0), after_s=PATIENT_S)
    for number in (1, 2, 3):
        sent.step(token(number), after_s=SLOW_S)
    assert sent.ids == [[0]]
    sent.step(token(4), after_s=PATIENT_S - 3 * SLOW_S)
    assert sent.ids == [[0], [1, 2, 3, 4]]
    sent.step(token(5), done())
    assert sent.ids == [[0], [1, 2, 3, 4], [5]]


def test_tokens_that_somebody_reads_take_those_of_batch_work_along():
    sent = Sent()
    sent.to.let_wait(1)
    sent.step(token(0), token(0, key=2))
    sent.step(token(1), after_s=SLOW_S)
    assert sent.ids == [[0, 0]]
    sent.step(token(2), token(1, key=2))
    assert sent.ids == [[0, 0], [1, 2, 1]]
    sent.step(token(3), done(key=1), after_s=FAST_S)
    sent.step(token(0), after_s=FAST_S)  # another job under the same key, which is no batch work
    assert sent.ids[2:] == [[3], [0]]


def test_held_output_goes_out_before_a_step_that_may_be_long():
    sent = Sent()
    sent.step(token(0))
    sent.step(token(1))
    sent.to.flush()
    sent.to.flush()
    assert sent.ids == [[0], [1]]


def test_what_steps_made_goes_out_also_when_the_next_one_fails():
    sent = Sent()

    def steps() -> None:
        with sent.to:
            sent.step(token(0))
            sent.step(token(1))
            raise EngineFailed

    with pytest.raises(EngineFailed):
        steps()
    assert sent.ids == [[0], [1]]


def test_frames_of_empty_steps_still_prove_life():
    sent = Sent()
    for _ in range(8):
        sent.step()
    assert [step.number for _, step in sent.frames] == [1, 5]


@given(st.lists(st.tuples(st.floats(0, 0.02), st.lists(st.integers(1, 3), max_size=3), st.booleans()), max_size=60))
def test_nothing_is_lost_reordered_or_late(steps: list[tuple[float, list[int], bool]]):
    sent, made, now = Sent(), [], 0
    for after_s, keys, ends in steps:
        outputs: list[TokenOut | Done] = []
        for key in dict.fromkeys(keys):
            made.append(now)
            outputs += [token(now, key), *([done(key)] if ends else [])]
            now += 1
        sent.step(*outputs, after_s=after_s)
        silent_s = sent.now - sent.frames[-1][0]
        assert silent_s < INTERVAL_S
    sent.to.flush()
    assert [token for frame in sent.ids for token in frame] == made
    numbers = [step.number for _, step in sent.frames]
    assert all(earlier <= later for earlier, later in pairwise(numbers))
