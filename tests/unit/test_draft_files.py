"""`draft` in models.yaml: which file guesses for which, and what is said when that can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import InvalidSetting
from tests.support.gguf_bytes import LLAMA, LORA, gguf_bytes
from tests.support.scripted_pool import FakeDevice
from workers.engine.base import EngineConfig
from workers.engine.dry_run import DryRun
from workers.model_files import ModelFolder
from workers.model_folder import FolderScanner
from workers.needs import Needs, formula_need

MANY_TOKENS = {**LLAMA, "tokenizer.ggml.tokens": [f"t{number}" for number in range(200)]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "large.gguf").write_bytes(gguf_bytes())
    (tmp_path / "small.gguf").write_bytes(gguf_bytes({**LLAMA, "llama.context_length": 512}))
    return tmp_path


def scan(folder: Path, yaml: str) -> ModelFolder:
    (folder / "models.yaml").write_text(yaml)
    return FolderScanner(folder, default_slots=8).scan()


def test_a_draft_is_another_way_to_load_a_model(folder: Path) -> None:
    plain, _ = scan(folder, "").models
    large, small = scan(folder, "models: {large: {draft: Small}}").models
    assert large.draft is not None
    assert (large.draft.id, large.draft.path) == ("small", small.path)
    assert large.description == f"{plain.description} + draft small"
    assert not large.loads_like(plain)
    assert small.draft is None
    assert large.draft.context_length_for(large.context_length) == 512
    assert large.draft.context_length_for(128) == 128


def test_a_changed_draft_file_outdates_the_runner(folder: Path) -> None:
    before, _ = scan(folder, "models: {large: {draft: small}}").models
    (folder / "small.gguf").write_bytes(gguf_bytes())
    after, _ = scan(folder, "models: {large: {draft: small}}").models
    assert not after.loads_like(before)


def test_a_missing_draft_is_done_without_and_said(folder: Path) -> None:
    plain, _ = scan(folder, "").models
    large, _ = scan(folder, "models: {large: {draft: gone}}").models
    assert large.draft is None
    assert large.draft_problem == "the folder has no usable model 'gone'"
    assert "without its draft" in large.description
    assert large.loads_like(plain)


def test_a_draft_with_quite_another_vocabulary_is_refused_with_the_numbers(folder: Path) -> None:
    (folder / "small.gguf").write_bytes(gguf_bytes(MANY_TOKENS))
    found = scan(folder, "models: {large: {draft: small}}")
    assert [model.id for model in found.models] == ["small"]
    assert "its draft 'small' has 200 tokens in its vocabulary, and it has 3; name a small" in found.unusable[0].reason


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        ("models: {large: {draft: large}}", "model 'large': draft: a model can't draft for itself"),
        ("models: {large: {draft: small}, small: {kind: embed}}", "'small' is of kind embed and can't draft"),
        ("models: {large: {draft: small, kind: embed}}", "only a model that generates text may have one"),
        ("models: {large: {draft: tune}, tune: {base: small}}", "'tune' is a LoRA adapter and can't draft"),
        ("models: {large: {draft: 'a b'}}", "draft: a model's name has"),
    ],
)
def test_what_can_never_draft_is_said_at_once(folder: Path, yaml: str, problem: str) -> None:
    (folder / "tune.gguf").write_bytes(gguf_bytes(LORA))
    with pytest.raises(InvalidSetting, match=rf"models\.yaml: .*{problem}"):
        scan(folder, yaml)


def test_adapters_share_the_draft_of_their_base(folder: Path) -> None:
    (folder / "tune.gguf").write_bytes(gguf_bytes(LORA))
    large, small = scan(folder, "models: {large: {draft: small}, tune: {base: large}}").models
    assert large.draft is not None
    assert large.draft.shape == small.shape
    assert [adapter.id for adapter in large.adapters] == ["tune"]
    with pytest.raises(InvalidSetting, match="give draft to 'large'"):
        scan(folder, "models: {tune: {base: large, draft: small}}")


def test_draft_is_weighed_without_its_own_adapters(folder: Path) -> None:
    (folder / "tune.gguf").write_bytes(gguf_bytes(LORA))
    large, small = scan(folder, "models: {large: {draft: small}, tune: {base: small}}").models
    assert large.draft is not None
    assert large.draft.shape.weight_bytes == small.shape.weight_bytes - small.adapter_bytes


def test_adapter_is_unusable_with_a_base_whose_draft_can_never_serve(folder: Path) -> None:
    (folder / "tune.gguf").write_bytes(gguf_bytes(LORA))
    (folder / "small.gguf").write_bytes(gguf_bytes(MANY_TOKENS))
    found = scan(folder, "models: {large: {draft: small}, tune: {base: large}}")
    assert [file.id for file in found.unusable] == ["large", "tune"]
    assert "its base 'large' can't be served" in found.unusable[1].reason


def test_its_bytes_are_counted_in_formula_and_dry_run(folder: Path) -> None:
    device = FakeDevice(token_table_bytes=10)
    plain, small = scan(folder, "").models
    large, _ = scan(folder, "models: {large: {draft: small}}").models
    more = formula_need(large, device).total_bytes - formula_need(plain, device).total_bytes
    assert more > small.shape.weight_bytes + 512 * large.slots * 2 * 2 * 32 * 2  # KV: layers, heads, K and V, f16
    assert "draft" in formula_need(large, device).explain()

    config = EngineConfig(model_path=large.path, context_length=2048, slots=8, threads=1)
    answer = DryRun(weight_bytes=1000, kv_bytes=1, compute_bytes=2, output_bytes=3, draft_bytes=500)
    needs = Needs(device, lambda model: config)
    needs._answers[large.identity, config] = answer
    assert needs.need(large).draft_bytes == 500 + 3 * 10
