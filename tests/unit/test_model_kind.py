"""What a file is for, by its metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import InvalidSetting
from tasks.fleet import ModelKind
from tests.support.gguf_bytes import LLAMA, ONE_TENSOR, gguf_bytes
from workers.gguf_header import read_header
from workers.model_files import ModelFile
from workers.model_folder import FolderScanner
from workers.model_kind import kind_of, pooling_of

BERT = {key.replace("llama.", "bert."): value for key, value in LLAMA.items()} | {"general.architecture": "bert"}
GENERATE, EMBED, RERANK = ModelKind


@pytest.mark.parametrize(
    ("metadata", "has_classifier", "kind", "pooling"),
    [
        (LLAMA, False, GENERATE, None),
        (LLAMA | {"llama.pooling_type": 3}, False, EMBED, None),  # a decoder made for vectors, as Qwen3-Embedding
        (LLAMA | {"llama.pooling_type": 4}, False, RERANK, "rank"),
        (LLAMA, True, RERANK, "rank"),
        (BERT, False, EMBED, "mean"),
        (BERT | {"bert.pooling_type": 0}, False, EMBED, "mean"),
        (BERT | {"bert.pooling_type": 2}, False, EMBED, None),
        (BERT | {"bert.pooling_type": 4}, True, RERANK, "rank"),
        (BERT | {"bert.pooling_type": 1}, True, EMBED, None),
    ],
)
def test_kind_and_pooling_follow_the_metadata(tmp_path: Path, metadata, has_classifier, kind, pooling) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(metadata, (*ONE_TENSOR, ("cls.weight", (64, 64), 0)) if has_classifier else ONE_TENSOR))
    header = read_header(path)
    assert kind_of(header) is kind
    assert pooling_of(header, kind, None) == pooling


def only_model(folder: Path, metadata: dict, yaml: str = "") -> ModelFile:
    (folder / "m.gguf").write_bytes(gguf_bytes(metadata))
    (folder / "models.yaml").write_text(yaml)
    return FolderScanner(folder, default_slots=8).scan().models[0]


def test_the_yaml_overrides_kind_and_pooling(tmp_path: Path) -> None:
    model = only_model(tmp_path, LLAMA, "models: {m: {kind: embed}}")
    assert (model.kind, model.pooling) == (EMBED, "last")  # of a decoder only the last token has seen the whole text
    model = only_model(tmp_path, BERT, "models: {m: {pooling: cls, matryoshka: true}}")
    assert (model.kind, model.pooling, model.is_matryoshka) == (EMBED, "cls", True)
    with pytest.raises(InvalidSetting, match="pooling"):
        only_model(tmp_path, BERT, "models: {m: {pooling: max}}")


def test_an_encoder_needs_no_cache_and_takes_shorter_inputs_by_default(tmp_path: Path) -> None:
    model = only_model(tmp_path, BERT | {"bert.context_length": 8192})
    assert model.context_length == 2048
    assert set(model.shape.kv_heads) == {0}
