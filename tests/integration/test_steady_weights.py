"""The types of weights by which llama.cpp computes a row alike in any batch, held to what it computes here.

Random models in which all matrices are of one type; each in the file's own layout and in the one for this CPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType
from llama_cpp import llama_cpp as api

from tools.random_gguf.shapes import RandomModel
from tools.random_gguf.writing import write_random_gguf
from workers.engine.backend import Slice
from workers.engine.base import DRAFT_TOKENS, EngineConfig
from workers.engine.kv_types import STEADY as STEADY_CACHE
from workers.engine.llama_generating import LlamaContext
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_model import load_model
from workers.gguf_header import read_header
from workers.gguf_types import STEADY
from workers.model_shape import has_steady_weights

pytestmark = pytest.mark.integration

SMALL = RandomModel(width=512, num_layers=2, num_kv_heads=2, hidden_width=1024, vocab_size=1024, context_length=256)
STEADY_FILES = {
    "MOSTLY_Q4_0": Kind.Q4_0,
    "MOSTLY_Q4_1": Kind.Q4_1,
    "MOSTLY_Q5_0": Kind.Q5_0,
    "MOSTLY_Q5_1": Kind.Q5_1,
    "MOSTLY_Q8_0": Kind.Q8_0,
    "MOSTLY_MXFP4_MOE": Kind.MXFP4,
}
OTHER_FILES = ["ALL_F32", "MOSTLY_F16", "MOSTLY_Q4_K_M", "MOSTLY_Q6_K"]
ROWS = (2, 3, 4, 5, DRAFT_TOKENS + 1)  # of a batch: the last token and its draft
IDS = [int(each) for each in np.random.default_rng(0).integers(10, 1000, 50)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("steady") / "q8_0.gguf"
    return write_random_gguf(path, "small", replace(SMALL, kind=Kind.Q8_0, embedding_kind=Kind.Q8_0))


def _stored_as(source: Path, file_type: str) -> Path:
    target = source.with_name(f"{file_type}.gguf")
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize, params.pure = LlamaFileType[file_type], 1, True, True
    assert api.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    return target


def _are_rows_alike(path: Path, *, is_repacked: bool) -> bool:
    config = EngineConfig(
        model_path=path,
        context_length=64,
        slots=1,
        threads=1,
        kv_type=STEADY_CACHE,
        draft_tokens=DRAFT_TOKENS,
        has_steady_weights=True,
        use_extra_bufts=is_repacked,
    )
    log = LlamaLog()
    model = load_model(config, log)
    context = LlamaContext(model, config, log)
    alone = np.array([context.decode([Slice(0, at, [token], 1)])[0].copy() for at, token in enumerate(IDS)])
    together = {rows: np.empty_like(alone) for rows in ROWS}
    for rows, found in together.items():
        context.keep_prefix(0, 0)
        for at in range(0, len(IDS), rows):
            ids = IDS[at : at + rows]
            found[at : at + rows] = context.decode([Slice(0, at, ids, len(ids))])
    context.keep_prefix(0, 0)
    prefilled = context.decode([Slice(0, 0, IDS, 1)])[0].copy()  # as a resume does
    context.close()
    model.close()
    return np.array_equal(alone[-1], prefilled) and all(np.array_equal(alone, found) for found in together.values())


@pytest.mark.parametrize("file_type", STEADY_FILES)
def test_steady_weights_give_a_row_the_same_logits_in_any_batch(source: Path, file_type: str):
    path = _stored_as(source, file_type)
    header = read_header(path)
    assert header.matrix_types == {STEADY_FILES[file_type]}
    assert has_steady_weights([header])
    assert [_are_rows_alike(path, is_repacked=each) for each in (False, True)] == [True, True]


def test_other_weights_do_not_and_are_not_called_steady(source: Path):
    paths = [_stored_as(source, file_type) for file_type in OTHER_FILES]
    assert not any(has_steady_weights([read_header(path)]) for path in paths)
    assert not any(_are_rows_alike(path, is_repacked=True) for path in paths)


def test_all_steady_types_are_tried():
    assert set(STEADY_FILES.values()) == STEADY


def test_file_with_an_output_of_another_type_is_not_steady(tmp_path: Path):
    path = write_random_gguf(tmp_path / "q4_0.gguf", "small", replace(SMALL, kind=Kind.Q4_0, embedding_kind=Kind.Q6_K))
    assert not has_steady_weights([read_header(path)])
