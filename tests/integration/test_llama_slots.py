"""Parking, restoring and copying on real llama.cpp with the demo model: the text stays the same to the token.

The KV type is what a worker gives to CPUs, because its attention rounds alike in every shape of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.jobs import Priority
from tests.support.generating import Heard, listen, request, run, run_one
from workers.engine.backend import Slice
from workers.engine.base import EngineConfig
from workers.engine.kv_types import STEADY
from workers.engine.llama_cpp import LlamaEngine
from workers.engine.llama_generating import LlamaContext
from workers.messages import Generate

pytestmark = pytest.mark.integration

MODEL = Path(__file__).parents[2] / "models" / "keepwarm-demo-q8_0.gguf"
CONFIG = EngineConfig(
    model_path=MODEL,
    context_length=512,
    slots=3,
    threads=1,
    prefill_chunk=48,
    kv_type=STEADY,
    use_extra_bufts=False,
    parked_bytes=2**24,
)
STORY = "Once upon a time there was a small warm stone by a quiet river. It had a friend, a green bird. " * 2
PROMPTS = [f"{STORY} Part {number}: the bird" for number in range(3)]


def loaded(config: EngineConfig) -> LlamaEngine:
    engine = LlamaEngine(config)
    engine.load(lambda fraction: None)
    return engine


@pytest.fixture
def engine() -> Iterator[LlamaEngine]:
    engine = loaded(CONFIG)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, Heard]:
    """Each prompt in a context of its own, in one chunk."""
    engine = loaded(replace(CONFIG, slots=1, prefill_chunk=512, parked_bytes=0))
    heard = {}
    for number, prompt in enumerate(PROMPTS):
        heard[number] = run_one(engine, request(prompt, max_tokens=60, ignore_eos=True))
        run_one(engine, request("something else", max_tokens=1))
    engine.close()
    return heard


def generate(number: int, priority: Priority = Priority.DEFAULT) -> Generate:
    return Generate(key=number, request=request(PROMPTS[number], max_tokens=60, ignore_eos=True), priority=priority)


def test_batch_sequences_that_were_parked_and_restored_say_the_same(engine: LlamaEngine, undisturbed: dict[int, Heard]):
    heard: dict[int, Heard] = {}
    for number in range(3):
        engine.add(engine.prepare(generate(number, Priority.BATCH)))
    while min((len(heard[number].ids) for number in heard), default=0) < 5 or len(heard) < 3:
        listen(engine, heard)
    for key in range(10, 16):  # more than slots, so that parked states are overwritten and restored
        what = request(f"{key} urgent words of somebody else " * 3, max_tokens=8, ignore_eos=True)
        engine.add(engine.prepare(Generate(key=key, request=what, priority=Priority.INTERACTIVE)))
    while engine.has_work:
        listen(engine, heard)
    for number in range(3):
        assert heard[number].ids == undisturbed[number].ids


def test_common_beginning_is_computed_once_and_copied(engine: LlamaEngine, undisturbed: dict[int, Heard]):
    heard = run(engine, [generate(number) for number in range(3)])
    assert heard[0].done.cached_tokens == 0
    for number in (1, 2):
        assert heard[number].done.cached_tokens > 0.8 * heard[number].done.prompt_tokens
    for number in range(3):
        assert heard[number].ids == undisturbed[number].ids


def test_overwritten_conversation_comes_back_from_memory(undisturbed: dict[int, Heard]):
    engine = loaded(replace(CONFIG, slots=1))
    first = run(engine, [generate(0)])[0]
    run_one(engine, request("an unrelated text " * 8, max_tokens=3))
    again = run(engine, [generate(0)])[0]
    engine.close()
    assert again.done.cached_tokens == first.done.prompt_tokens - 1
    assert first.ids == again.ids == undisturbed[0].ids


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_the_same_to_the_bit_in_any_batch(threads: int):
    engine = loaded(replace(CONFIG, threads=threads, prefill_chunk=128))
    context = engine._context
    assert context is not None
    tokens = [10 + number * 7 % 400 for number in range(400)]

    def last_row(piece: int, *others: Slice) -> bytes:
        """Of token 350, whose context came in pieces of so many tokens."""
        context.keep_prefix(0, 0)
        for start in range(0, 350, piece):
            context.decode([Slice(0, start, tokens[start : min(start + piece, 350)], 1)])
        return context.decode([Slice(0, 350, tokens[350:351], 1), *others])[0].tobytes()

    alone = last_row(100)
    assert last_row(7) == alone
    context.decode([Slice(1, 0, tokens[:90], 1)])
    assert last_row(128, Slice(1, 90, tokens[90:91], 1), Slice(2, 0, tokens[:100], 1)) == alone
    context.keep_prefix(0, 350)
    assert context.decode([Slice(0, 350, tokens[350:353], 3)])[0].tobytes() == alone
    engine.close()


@pytest.fixture(params=[STEADY, "f16", "q8_0"])
def context(request: pytest.FixtureRequest) -> Iterator[LlamaContext]:
    engine = loaded(replace(CONFIG, kv_type=request.param))
    assert engine._context is not None
    yield engine._context
    engine.close()


@pytest.mark.parametrize("filled", [40, 300], ids=["by state", "by buffer"])
def test_copied_and_restored_slots_give_the_logits_of_the_original(context: LlamaContext, filled: int):
    tokens = [(7 * n) % 400 + 20 for n in range(filled)]
    for start in range(0, filled, 40):
        context.decode([Slice(0, start, tokens[start : start + 40], 0)])
    state = context.save(0, 2**30)
    assert state is not None
    assert context.save(0, state.nbytes - 1) is None
    assert context.restore(1, state)
    context.copy(0, 2)
    assert context.copy_cost(filled) == min(2 * filled, CONFIG.context_length)
    assert [context.length(slot) for slot in range(3)] == [filled] * 3
    rows = [context.decode([Slice(slot, filled, [77], 1)]).copy() for slot in range(3)]
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_copy_that_is_still_to_come_is_not_overtaken(context: LlamaContext):
    old, new = [(5 * n) % 400 + 20 for n in range(300)], [(3 * n) % 400 + 20 for n in range(40)]
    context.decode([Slice(1, 0, new, 0)])
    other = context.save(1, 2**30)
    assert other is not None
    for start in range(0, 300, 40):
        context.decode([Slice(0, start, old[start : start + 40], 0)])
    expected = context.decode([Slice(0, 300, [77], 1)]).copy()
    assert context.keep_prefix(0, 300) == 300
    context.copy(0, 2)
    assert not context.restore(0, other)  # would change what the copy is going to read
    assert context.save(2, 2**30) is None  # holds nothing yet
    context.copy(1, 0)
    rows = context.decode([Slice(0, 40, [77], 1), Slice(2, 300, [77], 1)])
    assert np.array_equal(rows[1], expected[0])
    assert not np.array_equal(rows[0], expected[0])
    assert context.restore(0, other)
