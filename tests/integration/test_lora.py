"""A LoRA adapter as a model of its own, against the same change merged into the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tasks.errors import ModelLoadFailed
from tests.support.generating import request, run_one
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_model import write_tiny_model
from workers.engine.base import EngineConfig
from workers.engine.llama_cpp import LlamaEngine

pytestmark = pytest.mark.integration

SCALE = 0.5


def text_of(config: EngineConfig) -> str:
    engine = LlamaEngine(config)
    try:
        engine.load(lambda fraction: None)
        return run_one(engine, request("the inner the", max_tokens=40, ignore_eos=True)).text
    finally:
        engine.close()


def test_an_adapter_gives_the_text_of_the_merged_weights(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base.gguf")
    deltas = write_tiny_lora(tmp_path / "lora.gguf")
    merged = write_tiny_model(tmp_path / "merged.gguf", deltas={name: SCALE * each for name, each in deltas.items()})
    plain = EngineConfig(model_path=base, context_length=256, slots=1, threads=1)
    adapted = text_of(replace(plain, adapter_path=tmp_path / "lora.gguf", adapter_scale=SCALE))
    assert adapted == text_of(replace(plain, model_path=merged))
    assert adapted != text_of(plain)


def test_an_adapter_that_does_not_fit_its_base_says_so(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base.gguf")
    write_tiny_lora(tmp_path / "lora.gguf", architecture="qwen2")
    config = EngineConfig(model_path=base, context_length=256, slots=1, threads=1, adapter_path=tmp_path / "lora.gguf")
    with pytest.raises(ModelLoadFailed, match=r"LoRA adapter lora\.gguf"):
        text_of(config)
