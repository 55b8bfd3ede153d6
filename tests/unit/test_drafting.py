"""Speculative decoding in the step loop: drafts change when a token comes, never which."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.generation import SamplingParams
from tests.support.generating import Heard, listen, request
from workers.engine.backend import Interrupted, NoRoom
from workers.engine.fake import EOG_ID, VOCABULARY, FakeBackend
from workers.engine.fake_behaviour import FakeBehaviour
from workers.engine.sampling import Floats
from workers.engine.step_loop import StepLoop
from workers.messages import Generate

CONTEXT, DRAFTED = 160, 8
PROMPTS = ("abcd abcd abcd", "over and over and over", "no", "one two three four five six seven " * 2)


class RepeatingBackend(FakeBackend):
    """Says mostly what it said seven tokens before; now and then something that a hash of all tokens decides."""

    def __init__(self, slots: int, *, max_drafted: int, room: int = 10**6, interrupt_every: int = 0) -> None:
        super().__init__(slots, FakeBehaviour(mean_tokens=40))
        self.max_drafted = max_drafted
        self.room = room
        self.num_slots = slots
        self.interrupt_every = interrupt_every
        self.decodes = self.drafted = self.widest = 0

    def decode(self, batch, adapter: str = "") -> Floats:
        self.decodes += 1
        drafted = sum(part.outputs - 1 for part in batch if part.outputs)
        assert drafted <= self.max_drafted
        assert all(1 <= part.outputs <= len(part.tokens) for part in batch if part.outputs)
        if sum(len(part.tokens) for part in batch) + sum(map(self.length, range(self.num_slots))) > self.room:
            raise NoRoom
        assert all(part.start + len(part.tokens) <= CONTEXT for part in batch)
        self.drafted += drafted
        self.widest = max(self.widest, drafted)
        logits = super().decode(batch, adapter)
        if self.interrupt_every and self.decodes % self.interrupt_every == 0:
            raise Interrupted  # behind what the cache has taken already
        row = 0
        for part in batch:
            for before in range(part.outputs, 0, -1):
                held = len(self._kv[part.slot]) - before + 1
                digest = zlib.crc32(b"change", self._hashes[part.slot][held - 1])
                if held > 7 and digest % 6:
                    logits[row][self._kv[part.slot][held - 7]] = 8.0
                row += 1
        return logits


def loop_of(backend: RepeatingBackend) -> StepLoop:
    # By a clock that stands still drafts cost nothing, so every guess is drafted.
    return StepLoop(backend, slots=backend.num_slots, context_length=CONTEXT, prefill_chunk=24, monotonic_s=lambda: 0.0)


@dataclass(frozen=True)
class Job:
    prompt: str
    max_tokens: int
    seed: int  # 0: greedy
    stop: tuple[str, ...] = ()
    repeat_penalty: float = 1.0
    logprobs: int | None = None
    ignore_eos: bool = False
    cancel_at: int | None = None  # step

    def message(self, key: int) -> Generate:
        sampling = SamplingParams(
            temperature=0.8 if self.seed else 0.0, seed=self.seed, repeat_penalty=self.repeat_penalty
        )
        what = request(
            self.prompt,
            max_tokens=self.max_tokens,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            sampling=sampling,
        )
        return Generate(key=key, request=what)


def run(backend: RepeatingBackend, jobs: list[Job]) -> dict[int, Heard]:
    loop = loop_of(backend)
    for key, job in enumerate(jobs):
        loop.add(loop.sequence(job.message(key), tuple(job.prompt.encode())))
    heard: dict[int, Heard] = {}
    for step in range(3000):
        for key, job in enumerate(jobs):
            if job.cancel_at == step:
                loop.cancel(key)
        if not loop.has_work:
            return heard
        listen(loop, heard)
        for sequence in loop._slots.running:
            assert sequence.draft == []
            assert backend.length(sequence.slot) == sequence.decoded < len(sequence.tokens)
    raise AssertionError("somebody starves")


job_lists = st.lists(
    st.builds(
        Job,
        prompt=st.sampled_from(PROMPTS),
        max_tokens=st.integers(1, 90),
        seed=st.integers(0, 3),
        stop=st.sampled_from([(), (" river",), (" or", "ab ab")]),
        repeat_penalty=st.sampled_from([1.0, 1.1]),
        logprobs=st.sampled_from([None, 2]),
        ignore_eos=st.booleans(),
        cancel_at=st.none() | st.none() | st.integers(0, 30),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=120, deadline=None)
@given(job_lists, st.integers(1, 4), st.sampled_from([10**6, 10**6, 200]), st.sampled_from([0, 0, 5]))
def test_text_is_that_of_a_loop_without_drafts(jobs: list[Job], slots: int, room: int, interrupt_every: int):
    heard = run(RepeatingBackend(slots, max_drafted=DRAFTED, room=room, interrupt_every=interrupt_every), jobs)
    for key, job in enumerate(jobs):
        plain = run(RepeatingBackend(1, max_drafted=0), [Job(**{**vars(job), "cancel_at": None})])[0]
        if heard[key].done.finish_reason is None:
            assert plain.ids[: len(heard[key].ids)] == heard[key].ids
            assert plain.text.startswith(heard[key].text)
            continue
        assert (heard[key].ids, heard[key].text) == (plain.ids, plain.text)
        assert heard[key].logprobs == plain.logprobs
        assert heard[key].done.finish_reason == plain.done.finish_reason
        assert heard[key].done.completion_tokens == plain.done.completion_tokens


@pytest.mark.parametrize("seed", [0, 5])
def test_repetitive_text_takes_fewer_steps(seed: int):
    job = Job(PROMPTS[3], max_tokens=80, seed=seed, ignore_eos=True)
    backend, plain = RepeatingBackend(1, max_drafted=DRAFTED), RepeatingBackend(1, max_drafted=0)
    assert run(backend, [job])[0].ids == run(plain, [job])[0].ids
    assert backend.widest == DRAFTED
    assert backend.decodes < 0.6 * plain.decodes


@pytest.mark.parametrize(("adapter", "has_drafts"), [("", True), ("french", False)])
def test_nobody_drafts_unasked_under_an_adapter(adapter: str, has_drafts: bool):
    backend = RepeatingBackend(1, max_drafted=DRAFTED)
    loop = loop_of(backend)
    message = msgspec.structs.replace(Job(PROMPTS[3], max_tokens=40, seed=0).message(1), adapter=adapter)
    loop.add(loop.sequence(message, tuple(PROMPTS[3].encode())))
    heard: dict[int, Heard] = {}
    while loop.has_work:
        listen(loop, heard)
    assert heard[1].done.finish_reason is not None
    assert (backend.drafted > 0) == has_drafts


def test_draft_ends_before_the_limit_of_tokens():
    class Parrot(RepeatingBackend):
        def decode(self, batch, adapter: str = "") -> Floats:
            logits = super().decode(batch, adapter)
            logits[:, ord("x")] = 20.0
            return logits

    backend = Parrot(1, max_drafted=DRAFTED)
    heard = run(backend, [Job("xxxx", max_tokens=30, seed=0)])[0]
    assert heard.ids == (ord("x"),) * 30
    # The last token is sampled and never decoded, so nothing was drafted for nobody.
    assert sum(len(kv) for kv in backend._kv) == 4 + 30 - 1
    assert backend.drafted + backend.decodes == 30


def test_grammar_goes_on_token_by_token_through_a_draft():
    class Digits:
        """Allows ten digits; a digit that was taken may not come again before all ten did."""

        def __init__(self) -> None:
            self.taken: list[int] = []

        def _left(self) -> set[int]:
            return set(range(ord("0"), ord("9") + 1)) - set(self.taken[len(self.taken) // 10 * 10 :])

        def allows(self, token: int) -> bool:
            return token in self._left()

        def mask(self):
            mask = np.zeros(len(VOCABULARY), dtype=np.bool_)
            mask[list(self._left())] = True
            return mask

        def take(self, token: int) -> bool:
            assert token in self._left()
            self.taken.append(token)
            return len(self.taken) == 50

    said = {}
    for max_drafted in (0, DRAFTED):
        backend = RepeatingBackend(1, max_drafted=max_drafted)
        loop = loop_of(backend)
        job = Job("0123456789 " * 3, max_tokens=90, seed=0)
        loop.add(loop.sequence(job.message(1), tuple(job.prompt.encode()), Digits()))
        heard: dict[int, Heard] = {}
        while loop.has_work:
            listen(loop, heard)
        said[max_drafted] = (heard[1].ids, heard[1].done.finish_reason)
        assert (backend.drafted > 0) == (max_drafted > 0)
    assert said[0] == said[DRAFTED]
    assert said[0][1] == "stop" and len(said[0][0]) == 50


def test_end_token_in_a_draft_ends_the_sequence_and_the_slot_holds_what_was_said():
    class Ending(RepeatingBackend):
        def decode(self, batch, adapter: str = "") -> Floats:
            logits = super().decode(batch, adapter)
            if self.drafted:
                logits[:, EOG_ID] = 30.0
            return logits

    backend = Ending(1, max_drafted=DRAFTED)
    heard = run(backend, [Job(PROMPTS[3], max_tokens=90, seed=0)])[0]
    assert heard.done.finish_reason == "stop"
    assert backend.length(0) == heard.done.prompt_tokens + heard.done.completion_tokens - 1
