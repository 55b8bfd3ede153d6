"""LoRA adapters in the models folder: models for clients, and part of their base for all else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import InvalidSetting
from tests.support.gguf_bytes import LLAMA, LORA, gguf_bytes
from workers.model_files import ModelFolder
from workers.model_folder import FolderScanner


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.gguf").write_bytes(gguf_bytes())
    (tmp_path / "a-tune.gguf").write_bytes(gguf_bytes(LORA))
    return tmp_path


def scan(folder: Path, yaml: str) -> ModelFolder:
    (folder / "models.yaml").write_text(yaml)
    return FolderScanner(folder, default_slots=8).scan()


def test_an_adapter_belongs_to_its_base_whose_bytes_grow_by_it(folder: Path) -> None:
    (plain,) = scan(folder, "models: {base: {slots: 3}}").models
    (base,) = scan(folder, "models: {base: {slots: 3}, a-tune: {base: Base, scale: 0.5, alias: t, fallback: x}}").models
    (adapter,) = base.adapters
    assert (base.id, base.path, base.slots) == ("base", folder / "base.gguf", 3)
    assert (adapter.id, adapter.path, adapter.scale) == ("a-tune", folder / "a-tune.gguf", 0.5)
    assert (adapter.aliases, adapter.fallback) == (("t",), "x")
    assert base.adapter_bytes == adapter.tensor_bytes == 768
    assert base.shape.weight_bytes == plain.shape.weight_bytes + 768
    assert not base.loads_like(plain)


def test_runner_is_outdated_by_another_scale_or_file_and_not_by_another_name(folder: Path) -> None:
    (first,) = scan(folder, "models: {a-tune: {base: base}}").models
    (named,) = scan(folder, "models: {a-tune: {base: base, alias: t, fallback: base}}").models
    (scaled,) = scan(folder, "models: {a-tune: {base: base, scale: 2}}").models
    (folder / "a-tune.gguf").write_bytes(gguf_bytes(LORA | {"general.name": "newer"}))
    (newer,) = scan(folder, "models: {a-tune: {base: base}}").models
    assert first.loads_like(named)
    assert not first.loads_like(scaled)
    assert not first.loads_like(newer)


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("", "may name its `base`"),
        ("models: {a-tune: {base: other}}", "for 'other', which is no usable model"),
        ("models: {a-tune: {base: a-tune}}", "for 'a-tune', which is no usable model"),
    ],
)
def test_an_adapter_without_its_base_says_what_is_missing(folder: Path, yaml: str, says: str) -> None:
    found = scan(folder, yaml)
    assert [(model.id, model.adapters) for model in found.models] == [("base", ())]
    assert says in found.unusable[0].reason


def test_what_is_no_adapter_has_no_base(folder: Path) -> None:
    (folder / "a-tune.gguf").write_bytes(gguf_bytes())
    assert "but it is no LoRA adapter" in scan(folder, "models: {a-tune: {base: base}}").unusable[0].reason
    (folder / "a-tune.gguf").write_bytes(gguf_bytes(LORA | {"general.architecture": "qwen2"}))
    assert "for qwen2 models, and 'base' is llama" in scan(folder, "models: {a-tune: {base: base}}").unusable[0].reason


@pytest.mark.parametrize(
    "entry",
    [
        "{scale: 1}",
        "{base: base, scale: 0}",
        "{base: base, kind: embed}",
        "{base: base, slots: 2}",
        "{base: base, ttl: 5}",
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(folder: Path, entry: str) -> None:
    with pytest.raises(InvalidSetting, match="a-tune"):
        scan(folder, f"models: {{a-tune: {entry}}}")


def test_setting_of_the_runner_is_sent_to_the_base(folder: Path) -> None:
    with pytest.raises(InvalidSetting, match="give pin, slots to 'base'"):
        scan(folder, "models: {a-tune: {base: base, slots: 2, pin: true}}")


def test_name_of_an_adapter_is_taken(folder: Path) -> None:
    with pytest.raises(InvalidSetting, match="the alias 'a-tune' already belongs to 'a-tune'"):
        scan(folder, "models: {base: {alias: a-tune}, a-tune: {base: base}}")


def test_the_base_of_an_adapter_is_a_plain_model(folder: Path) -> None:
    assert LLAMA["general.architecture"] == LORA["general.architecture"]
    (folder / "b-tune.gguf").write_bytes(gguf_bytes(LORA))
    found = scan(folder, "models: {a-tune: {base: base}, b-tune: {base: a-tune}}")
    assert [adapter.id for adapter in found.models[0].adapters] == ["a-tune"]
    assert [file.id for file in found.unusable] == ["b-tune"]
