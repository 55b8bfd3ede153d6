"""A draft model in the step loop: its text changes nothing, its cache follows the sequences, and it stops where it
costs more than it saves. Both models are hashes, and time passes only where they compute."""

from __future__ import annotations

import zlib
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.generation import SamplingParams
from tasks.jobs import Priority
from tests.support.arrivals import arrivals
from tests.support.generating import Heard, listen, request, run_loop
from workers.engine.backend import NoRoom
from workers.engine.base import EngineFailed
from workers.engine.draft_model import NEAR, DraftModel
from workers.engine.fake import EOG_ID, TOKEN_BYTES, VOCABULARY, FakeBackend
from workers.engine.fake_behaviour import FakeBehaviour
from workers.engine.sampling import Floats
from workers.engine.step_loop import StepLoop
from workers.messages import Generate

CONTEXT, DRAFTED, CHUNK = 200, 8, 24
SYSTEM = "You are a quiet river stone. "
PROMPTS = (SYSTEM + "Say one.", SYSTEM + "Say two.", SYSTEM * 3 + "Say three.", "short")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class LargeBackend(FakeBackend):
    """A decode takes a second, and a tenth more for every further token."""

    max_drafted = DRAFTED

    def __init__(self, slots: int, clock: Clock, *, room: int = 10**6) -> None:
        super().__init__(slots, FakeBehaviour())
        self.clock = clock
        self.num_slots = slots
        self.room = room
        self.drafted = self.decodes = 0

    def decode(self, batch, adapter: str = "") -> Floats:
        tokens = sum(len(part.tokens) for part in batch)
        if tokens + sum(self.length(slot) for slot in range(self.num_slots)) > self.room:
            raise NoRoom
        self.decodes += 1
        self.drafted += sum(part.outputs - 1 for part in batch if part.outputs)
        self.clock.now_s += 1 + 0.1 * (tokens - 1)
        return super().decode(batch, adapter)


class SmallBackend(FakeBackend):
    """Says what the large one says, but where a hash decides otherwise; and takes a share of its time."""

    def __init__(self, slots: int, clock: Clock, *, wrong: int = 0, cost_s: float = 0.05) -> None:
        """Of 10 guesses `wrong` are."""
        super().__init__(slots, FakeBehaviour())
        self.clock = clock
        self.wrong = wrong
        self.cost_s = cost_s
        self.computed = self.copies = 0
        self.largest = 0  # tokens at once
        self.fails = False

    def decode(self, batch, adapter: str = "") -> Floats:
        if self.fails:
            raise EngineFailed("llama_decode returned -3.")
        tokens = sum(len(part.tokens) for part in batch)
        self.computed += tokens
        self.largest = max(self.largest, tokens)
        self.clock.now_s += self.cost_s * (1 + 0.1 * (tokens - 1))
        rows = super().decode(batch, adapter)
        digests = [self._hashes[part.slot][-1] for part in batch if part.outputs]
        for row, digest in zip(rows, digests, strict=True):
            if zlib.crc32(b"wrong", digest) % 10 < self.wrong:
                row[:] = np.roll(row, 1)
                row[EOG_ID] = -20.0
        return rows

    def copy(self, source: int, target: int) -> None:
        self.copies += 1
        super().copy(source, target)


@dataclass
class World:
    large: LargeBackend
    small: SmallBackend
    loop: StepLoop
    model: DraftModel
    clock: Clock


def world(
    slots: int = 2, *, room: int = 10**6, parked_bytes: int = 10**6, draft_context: int = CONTEXT, **small
) -> World:
    clock = Clock()
    backends = LargeBackend(slots, clock, room=room), SmallBackend(slots, clock, **small)
    model = DraftModel(
        backends[1],
        slots=slots,
        context_length=draft_context,
        vocabulary_size=len(VOCABULARY),
        large_vocabulary_size=len(VOCABULARY),
        turn=nullcontext(1),
    )
    loop = StepLoop(
        backends[0],
        slots=slots,
        context_length=CONTEXT,
        prefill_chunk=CHUNK,
        parked_bytes=parked_bytes,
        draft_model=model,
        monotonic_s=clock,
    )
    return World(*backends, loop, model, clock)


def add(
    loop: StepLoop, key: int, prompt: str, *, max_tokens: int = 40, seed: int = 0, priority=Priority.DEFAULT
) -> None:
    sampling = SamplingParams(temperature=1.0 if seed else 0.0, seed=seed)
    what = request(prompt, max_tokens=max_tokens, ignore_eos=True, sampling=sampling)
    loop.add(loop.sequence(Generate(key=key, request=what, priority=priority), tuple(prompt.encode())))


def alone(prompt: str, **options) -> Heard:
    backend = LargeBackend(1, Clock())
    backend.max_drafted = 0
    loop = StepLoop(backend, slots=1, context_length=CONTEXT, prefill_chunk=CHUNK)
    add(loop, 1, prompt, **options)
    return run_loop(loop)[1]


@settings(max_examples=60, deadline=None)
@given(
    arrivals(PROMPTS, max_tokens=50, max_size=8),
    st.integers(1, 4),
    st.sampled_from([0, 60 * TOKEN_BYTES, 10**6]),
    st.sampled_from([230, 10**6]),
    st.sampled_from([0, 3, 10]),
    st.sampled_from([90, CONTEXT]),
)
def test_everybody_ends_with_the_text_that_it_would_have_without(plan, slots, parked_bytes, room, wrong, draft_context):
    here = world(slots, room=room, parked_bytes=parked_bytes, wrong=wrong, draft_context=draft_context)
    heard: dict[int, Heard] = {}
    for step in range(1000):
        for key, each in enumerate(plan):
            if each.step == step:
                add(here.loop, key, each.prompt, max_tokens=each.max_tokens, seed=each.seed, priority=each.priority)
            if each.cancel_after is not None and each.step + each.cancel_after == step:
                here.loop.cancel(key)
        listen(here.loop, heard)
        assert here.small.largest <= 64
        if step > 30 and not here.loop.has_work:
            break
    assert not here.loop.has_work
    for key, each in enumerate(plan):
        expected = alone(each.prompt, max_tokens=each.max_tokens, seed=each.seed)
        if heard[key].done.finish_reason is None:
            assert expected.ids[: len(heard[key].ids)] == heard[key].ids
        else:
            assert (heard[key].ids, heard[key].text) == (expected.ids, expected.text)


@pytest.mark.parametrize("seed", [0, 5])
def test_draft_model_that_is_always_right_takes_a_fraction_of_the_time(seed: int):
    here = world(1)
    add(here.loop, 1, PROMPTS[0], max_tokens=100, seed=seed)
    heard = run_loop(here.loop)[1]
    assert heard.ids == alone(PROMPTS[0], max_tokens=100, seed=seed).ids
    assert here.clock.now_s < 0.5 * 100
    assert here.large.decodes < 35


@pytest.mark.parametrize(("wrong", "cost_s"), [(10, 0.2), (10, 0.02), (8, 0.3), (0, 1.5)])
def test_draft_model_that_does_not_pay_costs_next_to_nothing(wrong: int, cost_s: float):
    here = world(1, wrong=wrong, cost_s=cost_s)
    for key in range(10):
        add(here.loop, key, PROMPTS[0], max_tokens=100)
        run_loop(here.loop)
    plain = LargeBackend(1, Clock())
    plain.max_drafted = 0
    loop = StepLoop(plain, slots=1, context_length=CONTEXT, prefill_chunk=CHUNK, monotonic_s=plain.clock)
    for key in range(10):
        add(loop, key, PROMPTS[0], max_tokens=100)
        run_loop(loop)
    assert plain.clock.now_s / here.clock.now_s > 0.97


def test_draft_model_that_became_useful_is_found_out():
    here = world(1, wrong=10)
    for key in range(20):
        add(here.loop, key, PROMPTS[0], max_tokens=100)
        run_loop(here.loop)
    here.small.wrong = 0
    for key in range(20):
        add(here.loop, key, PROMPTS[0], max_tokens=100)
        run_loop(here.loop)
    began_s = here.clock.now_s
    add(here.loop, 99, PROMPTS[0], max_tokens=100)
    run_loop(here.loop)
    assert here.clock.now_s - began_s < 0.6 * 100


def test_long_prompt_is_caught_up_with_in_pieces_that_take_no_longer_than_a_step():
    here = world(1, cost_s=0.5)
    add(here.loop, 1, "quite another matter " * 7, max_tokens=40)
    heard: dict[int, Heard] = {}
    gaps = []
    while here.loop.has_work:
        began_s = here.clock.now_s
        listen(here.loop, heard)
        gaps.append(here.clock.now_s - began_s)
    assert here.small.computed > 7 * 21 - NEAR
    assert max(gaps[10:]) < 6


def test_second_sequence_with_the_same_beginning_is_copied():
    here = world(2)
    for key, prompt in enumerate(PROMPTS[:2]):
        add(here.loop, key, prompt, max_tokens=60)
        for _ in range(12):
            listen(here.loop, {key: Heard() for key in range(2)})
    run_loop(here.loop, {key: Heard() for key in range(2)})
    assert here.small.copies == 1


def test_failing_draft_model_stays_out_and_the_text_goes_on(capsys: pytest.CaptureFixture[str]):
    here = world(1)
    add(here.loop, 1, PROMPTS[0], max_tokens=60)
    heard: dict[int, Heard] = {}
    while here.large.drafted < 20:
        listen(here.loop, heard)
    here.small.fails = True
    assert run_loop(here.loop, heard)[1].ids == alone(PROMPTS[0], max_tokens=60).ids
    assert "goes on without the draft model: llama_decode returned -3." in capsys.readouterr().err


def test_tokens_that_the_draft_model_does_not_know_are_never_shown_to_it():
    here = world(1)
    here.model._vocabulary_size = 200  # the words of the answer have higher ids
    add(here.loop, 1, PROMPTS[0], max_tokens=60)
    assert run_loop(here.loop)[1].ids == alone(PROMPTS[0], max_tokens=60).ids
    assert here.small.computed == 0


def test_narrower_rows_of_a_draft_model_are_filled_up():
    here = world(1)
    here.model._large_vocabulary_size = len(VOCABULARY) + 5
    add(here.loop, 1, PROMPTS[0], max_tokens=60)
    assert run_loop(here.loop)[1].ids == alone(PROMPTS[0], max_tokens=60).ids
    assert here.large.drafted > 0
