"""What a real runner takes, against what was expected of it; and a model that is made to fit."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.encoding import EncodingRequest
from tests.support.generating import request, run_one
from tests.support.stack import DEMO_MODELS
from tests.support.tiny_encoder import write_tiny_encoder
from workers.devices import CpuDevice
from workers.dry_runs import dry_run
from workers.engine.base import EngineConfig
from workers.engine.kv_types import STEADY
from workers.engine.llama_cpp import LlamaEngine
from workers.engine.llama_encoder import LlamaEncoder
from workers.estimate import KV_ELEMENT_BYTES
from workers.messages import Encode, Encoded
from workers.model_files import ModelFile
from workers.model_folder import FolderScanner
from workers.needs import formula_need
from workers.page_map import untouched_bytes

pytestmark = pytest.mark.integration


def config(model: ModelFile, kv_type: str) -> EngineConfig:
    return EngineConfig(
        model_path=model.path,
        context_length=model.context_length,
        slots=model.slots,
        threads=1,
        kv_type=kv_type,
        model_kind=model.kind,
        pooling=model.pooling,
    )


@pytest.mark.parametrize("kv_type", [STEADY, "q8_0"])
def test_formula_and_dry_run_agree_on_a_language_model(kv_type: str) -> None:
    (model, *_) = FolderScanner(DEMO_MODELS, default_slots=4).scan().models
    model = replace(model, context_length=2048, kv_type=kv_type)
    told = dry_run(config(model, kv_type))
    assert told is not None
    expected = formula_need(model, CpuDevice())
    assert told.weight_bytes == expected.weight_bytes
    assert told.kv_bytes == pytest.approx(expected.kv_bytes, rel=0.01)
    assert told.compute_bytes + told.output_bytes == pytest.approx(
        expected.compute_bytes + expected.output_bytes, rel=0.15
    )
    assert kv_type in KV_ELEMENT_BYTES


def test_a_dry_run_knows_encoders(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path / "e.gguf")
    (model,) = FolderScanner(tmp_path, default_slots=4).scan().models
    told = dry_run(config(model, "f16"))
    assert told is not None
    assert (told.weight_bytes, told.kv_bytes) == (model.shape.weight_bytes, 0)
    assert told.compute_bytes > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is looked up in /proc")
def test_longest_input_of_an_encoder_takes_no_more_than_was_expected(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path / "e.gguf", context_length=512, unused_tokens=30_000)
    (model,) = FolderScanner(tmp_path, default_slots=4).scan().models
    told, expected = dry_run(config(model, "f16")), formula_need(model, CpuDevice())
    assert told is not None
    assert told.output_bytes == pytest.approx(expected.output_bytes, rel=0.01)
    engine = LlamaEncoder(config(model, "f16"))
    ready = engine.load(lambda fraction: None)
    try:
        before = anonymous_bytes()
        engine.add(engine.prepare(Encode(key=1, request=EncodingRequest(model="m", token_ids=((5,) * 512,)))))
        outputs = engine.step()
        taken = anonymous_bytes() - before
    finally:
        engine.close()
    assert any(isinstance(output, Encoded) for output in outputs)
    buffers = told.output_bytes + told.compute_bytes
    assert 0.8 * buffers < taken < 1.05 * buffers  # the interpreter allocates too
    assert ready.compute_bytes >= told.output_bytes


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def test_a_dry_run_of_a_file_that_is_no_model_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF but nothing else")
    broken = EngineConfig(model_path=tmp_path / "m.gguf", context_length=512, slots=1, threads=1)
    assert dry_run(broken) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell nothing about single pages")
def test_a_context_takes_its_memory_when_it_is_filled() -> None:
    (model, *_) = FolderScanner(DEMO_MODELS, default_slots=4).scan().models
    engine = LlamaEngine(config(replace(model, context_length=4096, slots=16), STEADY))
    ready = engine.load(lambda fraction: None)
    try:
        fresh = untouched_bytes(Path("/proc"), os.getpid(), ready.untouched)
        run_one(engine, request("word " * 1000, max_tokens=4, ignore_eos=True))
        used = untouched_bytes(Path("/proc"), os.getpid(), ready.untouched)
    finally:
        engine.close()
    assert fresh > 0.9 * ready.kv_bytes
    assert 0.01 * ready.kv_bytes < fresh - used < 0.1 * ready.kv_bytes  # of one of 16 slots about a quarter


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell nothing about single pages")
def test_a_closed_slot_takes_no_memory_however_many_prompts_come_one_after_the_other() -> None:
    (model, *_) = FolderScanner(DEMO_MODELS, default_slots=4).scan().models
    engine = LlamaEngine(config(replace(model, context_length=1024, slots=64), STEADY))
    ready = engine.load(lambda fraction: None)
    left = {}
    try:
        for count in (1, 2):
            engine.open_slots(count)
            for text in ("word ", "stone ", "river ", "bird "):
                run_one(engine, request(text * 400, max_tokens=4, ignore_eos=True))
            left[count] = untouched_bytes(Path("/proc"), os.getpid(), ready.untouched) / ready.kv_bytes
        assert engine._context is not None
        engine._context.clear()
        left[0] = untouched_bytes(Path("/proc"), os.getpid(), ready.untouched) / ready.kv_bytes
    finally:
        engine.close()
    assert left[1] > 62.5 / 64
    assert 61.5 / 64 < left[2] < left[1] - 0.2 / 64
    assert left[0] > 63.5 / 64
