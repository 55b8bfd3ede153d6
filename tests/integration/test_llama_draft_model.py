"""Draft models on real llama.cpp: the demo model, a deep copy that says the same, and models that know nothing of it.

The KV type of CPUs and weights of q8_0 round alike in every shape of a batch; weights of f16 don't, so they only draft.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import ModelLoadFailed
from tasks.generation import AnswerFormat, SamplingParams
from tasks.jobs import Priority
from tests.support.generating import GREEDY, Heard, listen, request, run
from tests.support.tiny_model import write_tiny_model
from tools.variant_gguf import write_variant
from workers.dry_runs import dry_run
from workers.engine.base import DraftConfig, EngineConfig
from workers.engine.dry_run import DryRun
from workers.engine.kv_types import STEADY
from workers.engine.llama_cpp import LlamaEngine
from workers.messages import Generate, Ready

pytestmark = pytest.mark.integration

DEMO = Path(__file__).parents[2] / "models" / "keepwarm-demo-q8_0.gguf"
DEMO_F16 = DEMO.with_name("keepwarm-demo-f16.gguf")
MESSAGES = [
    Generate(key=number, request=request(text, max_tokens=60, ignore_eos=True, logprobs=logprobs, sampling=sampling))
    for number, (text, logprobs, sampling) in enumerate(
        [
            ("Lily had a red ball. She took", None, GREEDY),
            ("Tom saw a dog. The dog", None, SamplingParams(temperature=0.8, seed=11)),
            ("Once there was", 2, SamplingParams(temperature=0.6, seed=4, top_p=0.9, repeat_penalty=1.1)),
        ]
    )
]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(DEMO, tmp_path_factory.mktemp("models") / "deep.gguf", deeper=3)


@pytest.fixture(scope="module")
def noisy(deep: Path) -> Path:
    return write_variant(DEMO_F16, deep.with_name("noisy.gguf"), noise=0.15)


@pytest.fixture(scope="module")
def useless(deep: Path) -> Path:
    return write_variant(DEMO_F16, deep.with_name("useless.gguf"), noise=3.0)


def config_of(model: Path, draft: Path | None) -> EngineConfig:
    return EngineConfig(
        model_path=model,
        context_length=256,
        slots=3,
        threads=1,
        prefill_chunk=64,
        kv_type=STEADY,
        use_extra_bufts=False,
        draft=DraftConfig(model_path=draft, context_length=256, threads=1) if draft else None,
        draft_tokens=8 if draft else 0,
        parked_bytes=2**20,
    )


class Drafting:
    """An engine whose clock stands still: drafts cost nothing then, so all that can be guessed is drafted."""

    def __init__(self, model: Path, draft: Path) -> None:
        self.engine = LlamaEngine(config_of(model, draft))
        self.ready: Ready = self.engine.load(lambda fraction: None)
        loop = self.engine._loop
        assert loop._drafting._guesser is not None
        loop._monotonic_s = loop._drafting._guesser._monotonic_s = lambda: 0.0
        self.budget = loop._drafting._guesser._budget


@pytest.fixture(scope="module")
def plain(deep: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(config_of(deep, None))
    engine.load(lambda fraction: None)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=["demo", "noisy", "useless"])
def drafting(request: pytest.FixtureRequest, deep: Path) -> Iterator[Drafting]:
    draft = DEMO if request.param == "demo" else request.getfixturevalue(request.param)
    each = Drafting(deep, draft)
    yield each
    each.engine.close()


def same(heard: dict[int, Heard], expected: dict[int, Heard]) -> None:
    for key, each in expected.items():
        assert (heard[key].ids, heard[key].text) == (each.ids, each.text)
        assert heard[key].logprobs == each.logprobs
        assert heard[key].done.finish_reason == each.done.finish_reason


@pytest.mark.parametrize("keys", [(0,), (1,), (2,), (0, 1, 2)])
def test_greedy_and_seeded_text_is_the_same(plain: LlamaEngine, drafting: Drafting, keys: tuple[int, ...]):
    messages = [MESSAGES[key] for key in keys]
    same(run(drafting.engine, messages), run(plain, messages))


def test_parked_sequences_go_on_as_if_nothing_had_happened(plain: LlamaEngine, drafting: Drafting):
    batch = [replace_priority(message, Priority.BATCH) for message in MESSAGES]
    urgent = [Generate(key=10 + key, request=message.request) for key, message in enumerate(MESSAGES)]
    heard: dict[int, Heard] = {}
    for message in batch:
        drafting.engine.add(drafting.engine.prepare(message))
    for _ in range(12):
        listen(drafting.engine, heard)
    for message in urgent:
        drafting.engine.add(drafting.engine.prepare(message))
    while drafting.engine.has_work:
        listen(drafting.engine, heard)
    expected = run(plain, MESSAGES)
    same(heard, expected)
    same({key: heard[10 + key] for key in expected}, expected)


def replace_priority(message: Generate, priority: Priority) -> Generate:
    return Generate(key=message.key, request=message.request, priority=priority)


def test_resumed_attempt_continues_at_the_next_token(plain: LlamaEngine, drafting: Drafting):
    whole = run(plain, [MESSAGES[1]])[1]
    resumed = Generate(key=1, request=MESSAGES[1].request, forced_ids=whole.ids[:20])
    heard = run(drafting.engine, [resumed])[1]
    assert (whole.ids[:20] + heard.ids, heard.text) == (whole.ids, whole.text)


def test_grammar_holds_and_says_the_same(plain: LlamaEngine, drafting: Drafting):
    grammar = AnswerFormat(kind="gbnf", text='root ::= ("the " ("dog" | "cat") " ran. ")+')
    message = Generate(
        key=5,
        request=request(
            "Lily saw", max_tokens=60, answer_format=grammar, sampling=SamplingParams(temperature=0.9, seed=3)
        ),
    )
    same(run(drafting.engine, [message]), run(plain, [message]))


def test_model_that_says_the_same_is_always_right(deep: Path):
    drafting = Drafting(deep, DEMO)
    steps: list[int] = []
    heard = run(drafting.engine, MESSAGES[:1], on_step=steps.append)[0]
    assert len(steps) < 0.4 * len(heard.ids)
    assert drafting.budget.chance > 0.8
    drafting.engine.close()


def test_draft_of_another_vocabulary_fails_to_load_with_what_differs(deep: Path, tmp_path: Path):
    other = write_tiny_model(tmp_path / "other.gguf")
    with pytest.raises(ModelLoadFailed, match=r"other\.gguf can't draft for this model: .* as `draft` in models\.yaml"):
        LlamaEngine(config_of(deep, other)).load(lambda fraction: None)


def test_draft_with_other_words_for_the_same_ids_fails_to_load(tmp_path: Path):
    model = write_tiny_model(tmp_path / "m.gguf", more_control=("<|one|>",))
    other = write_tiny_model(tmp_path / "other.gguf", more_control=("<|two|>",))
    with pytest.raises(ModelLoadFailed, match=r"its token \d+ is '<\|two\|>', and that of this model '<\|one\|>'"):
        LlamaEngine(config_of(model, other)).load(lambda fraction: None)


def test_its_memory_is_reported_and_known_ahead(deep: Path):
    without = LlamaEngine(config_of(deep, None))
    plain_ready = without.load(lambda fraction: None)
    without.close()
    drafting = Drafting(deep, DEMO)
    drafting.engine.close()
    told, alone = dry_run(config_of(deep, DEMO)), dry_run(config_of(DEMO, None))
    assert isinstance(told, DryRun)
    assert isinstance(alone, DryRun)
    assert drafting.ready.weight_bytes - plain_ready.weight_bytes == alone.weight_bytes
    assert drafting.ready.kv_bytes - plain_ready.kv_bytes == pytest.approx(alone.kv_bytes, rel=0.01)
    more = (drafting.ready.weight_bytes + drafting.ready.kv_bytes) - (plain_ready.weight_bytes + plain_ready.kv_bytes)
    assert more < told.draft_bytes < 1.3 * more
