"""Models of random weights load in llama.cpp and generate, whatever their block types."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind

from tasks.generation import ChatMessage, GenerationRequest, SamplingParams
from tests.support.generating import run_one
from tools.random_gguf.shapes import RandomModel
from tools.random_gguf.writing import write_random_gguf
from workers.engine.base import EngineConfig
from workers.engine.llama_cpp import LlamaEngine

pytestmark = pytest.mark.integration

TINY = RandomModel(width=256, num_layers=2, num_kv_heads=2, hidden_width=512, vocab_size=2048, context_length=512)


@pytest.mark.parametrize(("kind", "embedding_kind"), [(Kind.Q8_0, Kind.Q8_0), (Kind.Q4_0, Kind.Q6_K)])
def test_a_random_model_answers_a_chat_to_the_last_token(tmp_path: Path, kind: Kind, embedding_kind: Kind):
    model = replace(TINY, kind=kind, embedding_kind=embedding_kind)
    path = write_random_gguf(tmp_path / "tiny.gguf", "tiny", model)
    engine = LlamaEngine(EngineConfig(model_path=path, context_length=256, slots=2, threads=1, use_extra_bufts=False))
    ready = engine.load(lambda fraction: None)
    chat = (ChatMessage(role="user", content="Hello!"),)
    sampling = SamplingParams(temperature=1.0, seed=1)
    heard = run_one(engine, GenerationRequest(model="m", messages=chat, sampling=sampling, max_tokens=60))
    engine.close()
    assert ready.weight_bytes == model.num_bytes
    assert heard.done.finish_reason == "length"  # no end token in between
    assert len(set(heard.ids)) > 20  # logits of a sane spread, not one that towers above all


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path):
    first, again, other = (
        write_random_gguf(tmp_path / name, "tiny", TINY, seed=seed).read_bytes()
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert first != other
