"""The whole step loop on the fake engine, whose text changes with the slightest slip in positions or prefixes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import ModelLoadFailed, PromptTooLong
from tasks.generation import SamplingParams
from tasks.jobs import Priority
from tests.support.generating import Heard, listen, request, run, run_one
from workers.engine.backend import NoRoom
from workers.engine.base import EngineConfig, EngineFailed
from workers.engine.fake import FakeBackend, FakeEngine
from workers.engine.fake_behaviour import FakeBehaviour
from workers.engine.sampling import Floats
from workers.engine.step_loop import StepLoop
from workers.messages import Generate


def engine(*, slots: int = 4, context_length: int = 400, prefill_chunk: int = 16, **behaviour) -> FakeEngine:
    config = EngineConfig(
        model_path=Path("none"),
        context_length=context_length,
        slots=slots,
        threads=1,
        prefill_chunk=prefill_chunk,
    )
    return FakeEngine(config, FakeBehaviour(**behaviour))


def test_answer_is_the_same_alone_and_in_company():
    asked = [request(f"question {number} " * (number + 1), max_tokens=30) for number in range(8)]
    alone = [run_one(engine(), what).text for what in asked]
    together = run(engine(slots=3), [Generate(key=number, request=what) for number, what in enumerate(asked)])
    assert [together[number].text for number in range(8)] == alone
    assert len(set(alone)) == 8


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), temperature=st.sampled_from([0.0, 1.0]), stop=st.sampled_from([(), (" 本",)]))
def test_resume_at_every_token_continues_as_if_undisturbed(seed, temperature, stop):
    what = request(
        "tell me",
        sampling=SamplingParams(temperature=temperature, seed=seed, repeat_penalty=1.2),
        max_tokens=25,
        stop=stop,
    )
    warm = engine()
    whole = run_one(warm, what)
    for published in range(len(whole.outputs) + 1):
        before = Heard(whole.outputs[:published])
        rest = run_one(warm, what, forced_ids=before.ids, emitted_text=before.text)
        assert before.text + rest.text == whole.text
        assert rest.done.finish_reason == whole.done.finish_reason
        assert rest.done.completion_tokens == whole.done.completion_tokens


def test_second_turn_reuses_the_first_one():
    warm = engine()
    prompt = "a long conversation " * 5
    first = run_one(warm, request(prompt, max_tokens=5))
    longer = request(prompt + "and more", max_tokens=20)
    second = run_one(warm, longer)
    assert first.done.cached_tokens == 0
    assert second.done.cached_tokens == len(prompt)
    assert second.text == run_one(engine(), longer).text


def test_same_prompt_again_decodes_only_its_last_token():
    warm = engine()
    what = request("once more", max_tokens=5)
    first, second = run_one(warm, what), run_one(warm, what)
    assert second.text == first.text
    assert second.done.cached_tokens == len("once more") - 1


def test_cancel_frees_the_slot_within_one_step():
    warm = engine(slots=1)
    heard: dict[int, Heard] = {}
    for key in (1, 2):
        warm.add(warm.prepare(Generate(key=key, request=request("go on", max_tokens=50, ignore_eos=True))))
    listen(warm, heard)
    warm.cancel(1)
    listen(warm, heard)
    assert heard[1].done.finish_reason is None
    assert heard[1].done.completion_tokens == 1
    assert heard[2].outputs  # the step that said so decoded the next in line already


def test_long_prefill_is_interrupted_by_the_cancel_of_its_own_sequence_only():
    warm = engine(slots=2, prefill_chunk=300, prefill_us_per_token=50_000)  # a step of 15 s, if nobody stops it
    warm.add(warm.prepare(Generate(key=1, request=request("x" * 300))))
    step = threading.Thread(target=warm.step)
    step.start()
    while step.is_alive():
        warm.interrupt(99)  # not in the batch: no effect
        warm.interrupt(1)
        step.join(0.01)
    heard: dict[int, Heard] = {}
    warm.cancel(1)
    listen(warm, heard)
    assert heard[1].done.finish_reason is None


@pytest.mark.parametrize("priority", Priority)
def test_only_a_decode_of_batch_work_alone_is_stopped_for_a_newcomer(priority: Priority):
    warm = engine(slots=2, prefill_chunk=300, prefill_us_per_token=10_000)  # a step of 0.2 s, if nobody stops it
    message = Generate(key=1, request=request("x" * 20, max_tokens=1, ignore_eos=True), priority=priority)
    warm.add(warm.prepare(message))
    heard: dict[int, Heard] = {}
    step = threading.Thread(target=listen, args=(warm, heard))
    step.start()
    while step.is_alive():
        warm.hurry()
        step.join(0.01)
    was_stopped = not heard
    assert was_stopped is (priority is Priority.BATCH)
    while warm.has_work:
        listen(warm, heard)
    assert heard[1].done.completion_tokens == 1


def test_cancel_reaches_a_sequence_in_prefill_and_one_that_waits():
    warm = engine(slots=1, prefill_chunk=8)
    heard: dict[int, Heard] = {}
    for key in (1, 2):
        warm.add(warm.prepare(Generate(key=key, request=request("long " * 20))))
    assert listen(warm, heard) == 0
    warm.cancel(2)
    warm.cancel(1)
    warm.cancel(99)
    assert listen(warm, heard) == 2
    assert not warm.has_work
    assert {key: each.done.finish_reason for key, each in heard.items()} == {1: None, 2: None}


def test_long_prompt_does_not_stall_the_others():
    warm = engine(slots=2, prefill_chunk=8)
    heard: dict[int, Heard] = {}
    warm.add(warm.prepare(Generate(key=1, request=request("hi", max_tokens=100, ignore_eos=True))))
    listen(warm, heard)
    warm.add(warm.prepare(Generate(key=2, request=request("long " * 60, max_tokens=1))))
    for step in range(2, 12):
        listen(warm, heard)
        assert len(heard[1].ids) == step
    assert 2 not in heard


def test_forced_ids_that_are_complete_need_no_decode():
    what = request("short", max_tokens=4, ignore_eos=True)
    warm = engine()
    whole = run_one(warm, what)
    steps: list[int] = []
    again = run(
        warm, [Generate(key=1, request=what, forced_ids=whole.ids, emitted_text=whole.text)], on_step=steps.append
    )
    assert steps == [1]
    assert again[1].text == ""
    assert again[1].done.finish_reason == "length"


def test_prompt_that_fills_the_context_is_refused():
    warm = engine(context_length=10)
    assert run_one(warm, request("x" * 9)).done.finish_reason == "length"
    with pytest.raises(PromptTooLong) as raised:
        warm.prepare(Generate(key=1, request=request("x" * 10)))
    assert (raised.value.prompt_tokens, raised.value.context_length) == (10, 10)


def test_logprobs_come_with_every_token():
    heard = run_one(engine(), request("why", max_tokens=10, ignore_eos=True, logprobs=2))
    assert len(heard.logprobs) == len(heard.ids) == 10
    assert all(len(each.top) == 2 and each.logprob <= 0 for each in heard.logprobs)


def test_load_error_is_raised_as_such():
    with pytest.raises(ModelLoadFailed, match="no such luck"):
        engine(load_error="no such luck").load(lambda fraction: None)


class CrampedBackend(FakeBackend):
    """Has room for a few tokens per batch only."""

    def decode(self, batch, adapter: str = "") -> Floats:
        if sum(len(part.tokens) for part in batch) > 5:
            raise NoRoom
        return super().decode(batch, adapter)


def loop(backend: FakeBackend) -> StepLoop:
    return StepLoop(backend, slots=2, context_length=400, prefill_chunk=64)


def drain(steps: StepLoop, prompt: str) -> str:
    heard: dict[int, Heard] = {}
    steps.add(steps.sequence(Generate(key=1, request=request(prompt, max_tokens=9)), tuple(prompt.encode())))
    while steps.has_work:
        listen(steps, heard)
    return heard[1].text


def test_full_cache_shrinks_the_prefill_instead_of_failing():
    prompt = "more than five tokens"
    assert drain(loop(CrampedBackend(2, FakeBehaviour())), prompt) == drain(
        loop(FakeBackend(2, FakeBehaviour())), prompt
    )


class BrokenBackend(FakeBackend):
    def decode(self, batch, adapter: str = "") -> Floats:
        return super().decode(batch, adapter) * float("nan")


def test_a_model_that_produces_nan_is_given_up():
    with pytest.raises(EngineFailed, match="NaN"):
        drain(loop(BrokenBackend(2, FakeBehaviour())), "x")


class ForgetfulBackend(FakeBackend):
    """Like a recurrent model: a tail can't be cut off."""

    def keep_prefix(self, slot: int, length: int) -> int:
        return super().keep_prefix(slot, 0)


def test_a_backend_that_cannot_cut_a_tail_starts_over():
    steps = loop(ForgetfulBackend(2, FakeBehaviour()))
    assert drain(steps, "again") == drain(steps, "again")
