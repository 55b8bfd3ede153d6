"""LoRA adapters in the models folder: a model of their own, with what their base has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import InvalidSetting
from tests.support.gguf_bytes import LLAMA, gguf_bytes
from workers.model_files import FolderScanner, ModelFolder

LORA: dict[str, object] = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.gguf").write_bytes(gguf_bytes())
    (tmp_path / "a-tune.gguf").write_bytes(gguf_bytes(LORA))
    return tmp_path


def scan(folder: Path, yaml: str) -> ModelFolder:
    (folder / "models.yaml").write_text(yaml)
    return FolderScanner(folder, default_slots=8).scan()


def test_an_adapter_is_a_model_with_the_settings_of_its_base(folder: Path) -> None:
    yaml = "models: {base: {slots: 3, alias: b}, a-tune: {base: Base, scale: 0.5, alias: t, context_length: 1024}}"
    tuned, base = scan(folder, yaml).models
    assert (tuned.id, tuned.path, tuned.adapter_path) == ("a-tune", base.path, folder / "a-tune.gguf")
    assert (tuned.adapter_scale, tuned.slots, tuned.context_length, tuned.aliases) == (0.5, 3, 1024, ("t",))
    assert tuned.shape.weight_bytes == base.shape.weight_bytes + 768
    assert tuned.description == "llama 192 F32 + LoRA"
    assert not tuned.loads_like(base)


def test_another_scale_is_another_model_to_load(folder: Path) -> None:
    first, _ = scan(folder, "models: {a-tune: {base: base}}").models
    second, _ = scan(folder, "models: {a-tune: {base: base, scale: 2}}").models
    assert not first.loads_like(second)


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
    assert [model.id for model in found.models] == ["base"]
    assert says in found.unusable[0].reason


def test_what_is_no_adapter_has_no_base(folder: Path) -> None:
    (folder / "a-tune.gguf").write_bytes(gguf_bytes())
    assert "but it is no LoRA adapter" in scan(folder, "models: {a-tune: {base: base}}").unusable[0].reason
    (folder / "a-tune.gguf").write_bytes(gguf_bytes(LORA | {"general.architecture": "qwen2"}))
    assert "for qwen2 models, and 'base' is llama" in scan(folder, "models: {a-tune: {base: base}}").unusable[0].reason


@pytest.mark.parametrize("entry", ["{scale: 1}", "{base: base, scale: 0}", "{base: base, kind: embed}"])
def test_an_entry_that_makes_no_sense_is_refused(folder: Path, entry: str) -> None:
    with pytest.raises(InvalidSetting, match="a-tune"):
        scan(folder, f"models: {{a-tune: {entry}}}")


def test_the_base_of_an_adapter_is_a_plain_model(folder: Path) -> None:
    assert LLAMA["general.architecture"] == LORA["general.architecture"]
    (folder / "b-tune.gguf").write_bytes(gguf_bytes(LORA))
    found = scan(folder, "models: {a-tune: {base: base}, b-tune: {base: a-tune}}")
    assert [model.id for model in found.models] == ["a-tune", "base"]
