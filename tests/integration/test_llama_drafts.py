"""Speculative decoding on real llama.cpp with the demo model: the text stays the same to the token.

The KV type is what a worker gives to CPUs, because its attention rounds alike in every shape of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from llama_cpp import llama_cpp as api

from tasks.generation import AnswerFormat, SamplingParams
from tests.support.generating import GREEDY, request, run
from workers.engine import llama_generating
from workers.engine.base import DRAFT_TOKENS, DraftConfig, EngineConfig
from workers.engine.kv_types import STEADY
from workers.engine.llama_cpp import LlamaEngine
from workers.messages import Generate

pytestmark = pytest.mark.integration

MODEL = Path(__file__).parents[2] / "models" / "keepwarm-demo-q8_0.gguf"
CONFIG = EngineConfig(
    model_path=MODEL,
    context_length=384,
    slots=3,
    threads=1,
    prefill_chunk=64,
    kv_type=STEADY,
    use_extra_bufts=False,
    has_steady_weights=True,
)
STORY = "Lily had a red ball. She took the red ball to the park. Tom saw the red ball. " * 2
MESSAGES = [
    Generate(
        key=number,
        request=request(
            STORY + ending, max_tokens=80, ignore_eos=True, stop=stop, logprobs=logprobs, sampling=sampling
        ),
    )
    for number, (ending, stop, logprobs, sampling) in enumerate(
        [
            ("Lily had", (), None, GREEDY),
            ("Tom saw", (" again",), None, SamplingParams(temperature=0.7, seed=11)),
            ("She took the", (), 2, SamplingParams(temperature=0.5, seed=4, repeat_penalty=1.05)),
        ]
    )
]


@pytest.fixture(scope="module")
def plain() -> Iterator[LlamaEngine]:
    engine = LlamaEngine(replace(CONFIG, draft_tokens=0))
    engine.load(lambda fraction: None)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def drafting() -> Iterator[LlamaEngine]:
    engine = LlamaEngine(CONFIG)
    engine.load(lambda fraction: None)
    engine._loop._monotonic_s = lambda: 0.0  # drafts cost nothing then, so all guesses are drafted
    yield engine
    engine.close()


@pytest.mark.parametrize("keys", [(0,), (1,), (2,), (0, 1, 2)])
def test_greedy_and_seeded_text_is_the_same_with_drafts(
    plain: LlamaEngine, drafting: LlamaEngine, monkeypatch: pytest.MonkeyPatch, keys: tuple[int, ...]
):
    context = drafting._context
    assert context is not None
    drafted: list[int] = []
    decode = context.decode

    def counting(batch, adapter):
        drafted.append(sum(max(0, part.outputs - 1) for part in batch))
        return decode(batch, adapter)

    monkeypatch.setattr(context, "decode", counting)
    messages = [MESSAGES[key] for key in keys]
    expected, heard = run(plain, messages), run(drafting, messages)
    for key in keys:
        assert (heard[key].ids, heard[key].text) == (expected[key].ids, expected[key].text)
        assert heard[key].logprobs == expected[key].logprobs
        assert heard[key].done.finish_reason == expected[key].done.finish_reason
    assert sum(drafted) > 10


def test_text_that_a_grammar_makes_repetitive_takes_a_fraction_of_the_steps(plain: LlamaEngine, drafting: LlamaEngine):
    grammar = AnswerFormat(kind="gbnf", text='root ::= ("{\\"colour\\": \\"" ("red" | "blue") "\\"}\\n")+')
    message = Generate(key=1, request=request("Colours: ", max_tokens=150, ignore_eos=True, answer_format=grammar))
    steps: list[int] = []
    heard = run(drafting, [message], on_step=steps.append)[1]
    assert heard.ids == run(plain, [message])[1].ids
    assert len(steps) < 0.5 * len(heard.ids)


def test_conversation_goes_on_in_the_cache_that_drafts_were_cut_from(plain: LlamaEngine, drafting: LlamaEngine):
    first = run(drafting, MESSAGES[:1])[0]
    turn = Generate(key=9, request=request(STORY + "Lily had" + first.text + " Then", max_tokens=20, ignore_eos=True))
    heard, expected = run(drafting, [turn])[9], run(plain, [turn])[9]
    assert heard.done.cached_tokens > first.done.prompt_tokens
    assert heard.ids == expected.ids


def test_models_whose_newest_tokens_stay_in_the_cache_never_draft(
    drafting: LlamaEngine, monkeypatch: pytest.MonkeyPatch
):
    assert drafting._context is not None and drafting._model is not None
    assert drafting._context.max_drafted == DRAFT_TOKENS
    monkeypatch.setattr(api, "llama_model_n_swa", lambda model: 128)
    assert llama_generating.max_drafted(drafting._model, CONFIG) == 0
    monkeypatch.undo()
    monkeypatch.setattr(api, "llama_model_is_recurrent", lambda model: True)
    assert llama_generating.max_drafted(drafting._model, CONFIG) == 0


def test_weights_that_are_not_steady_are_drafted_for_only_when_asked_on_a_cpu():
    config = replace(CONFIG, model_path=MODEL.with_name("keepwarm-demo-f16.gguf"), has_steady_weights=False)
    engine = LlamaEngine(config)
    engine.load(lambda fraction: None)
    assert engine._model is not None and engine._context is not None
    assert engine._context.max_drafted == 0
    asked = DraftConfig(model_path=MODEL, context_length=384, threads=1)
    assert llama_generating.max_drafted(engine._model, replace(config, draft=asked)) == DRAFT_TOKENS
    assert llama_generating.max_drafted(engine._model, replace(config, gpu_layers=-1)) == DRAFT_TOKENS
    engine.close()
