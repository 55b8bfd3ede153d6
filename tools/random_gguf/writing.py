"""Write a random model as GGUF, one tensor after the other: memory for the largest tensor is enough."""

from __future__ import annotations

import itertools
import math
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tools.random_gguf.blocks import BLOCKS, num_bytes
from tools.random_gguf.shapes import HEAD_WIDTH, RandomModel

DEMO_MODEL = Path(__file__).resolve().parents[2] / "models" / "keepwarm-demo-f16.gguf"
LOGIT_STD = 1.0  # the greatest of 32 000 is then near 4, above what the embedding of the last token adds to its own
QUIET = 1 / 256  # factor on the weights of control tokens


def write_random_gguf(
    path: Path,
    name: str,
    model: RandomModel,
    *,
    seed: int = 0,
    vocabulary_of: Path = DEMO_MODEL,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Path:
    """Write tensor by tensor, and in one move into place. `advance` hears of every tensor's bytes."""
    unfinished = path.with_name(path.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _add_metadata(writer, name, model)
    num_control = _add_tokenizer(writer, model.vocab_size, gguf.GGUFReader(vocabulary_of))
    for matrix, rows, columns in model.matrices():
        kind = model.kind_of(matrix)
        size = num_bytes(kind, rows, columns)
        writer.add_tensor_info(f"{matrix}.weight", (rows, size // rows), np.dtype(np.uint8), size, raw_dtype=kind)
    for norm in model.norms():
        writer.add_tensor_info(f"{norm}.weight", (model.width,), np.dtype(np.float32), 4 * model.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, (matrix, rows, columns) in enumerate(model.matrices()):
        std = np.full(rows, 1 / math.sqrt(columns), np.float32)
        if matrix == "token_embd":
            std *= LOGIT_STD
            std[:num_control] *= QUIET
        random = np.random.default_rng([seed, number])
        data = BLOCKS[model.kind_of(matrix)](random, rows, columns, std)
        writer.write_tensor_data(data)
        advance(data.nbytes)
    for _ in model.norms():
        writer.write_tensor_data(np.ones(model.width, np.float32))
        advance(4 * model.width)
    writer.close()
    os.replace(unfinished, path)
    return path


def _add_metadata(writer: gguf.GGUFWriter, name: str, model: RandomModel) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_description("Random weights, for benchmarks only: the text means nothing.")
    writer.add_size_label(f"{model.num_parameters / 1e6:.0f}M")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{model.kind.name}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.hidden_width)
    writer.add_head_count(model.width // HEAD_WIDTH)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(model.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int, source: gguf.GGUFReader) -> int:
    """The source's tokenizer and fillers up to `vocab_size`; returns how many control tokens lead it."""

    def field(name: str) -> Any:
        return source.fields[name].contents()

    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    fillers = filler_tokens(set(tokens), vocab_size - len(tokens))
    writer.add_tokenizer_model(field("tokenizer.ggml.model"))
    writer.add_tokenizer_pre(field("tokenizer.ggml.pre"))
    writer.add_token_list([*tokens, *fillers])
    writer.add_token_types([*types, *(gguf.TokenType.NORMAL for _ in fillers)])
    writer.add_token_merges(field("tokenizer.ggml.merges"))
    writer.add_bos_token_id(field("tokenizer.ggml.bos_token_id"))
    writer.add_eos_token_id(field("tokenizer.ggml.eos_token_id"))
    writer.add_eot_token_id(field("tokenizer.ggml.eot_token_id"))
    writer.add_add_bos_token(True)
    writer.add_chat_template(field("tokenizer.chat_template"))
    return sum(kind == gguf.TokenType.CONTROL for kind in types)


def filler_tokens(taken: set[str], count: int) -> list[str]:
    """`count` words of four letters behind a space (`Ġ` in GPT-2's alphabet of bytes). Two equal tokens would kill
    llama.cpp, so those that are taken are left out."""
    words = ("Ġ" + "".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=4))
    fillers = list(itertools.islice((word for word in words if word not in taken), count))
    if len(fillers) < count:
        raise ValueError(f"there are only {len(fillers)} filler words, {count} are needed")
    return fillers
