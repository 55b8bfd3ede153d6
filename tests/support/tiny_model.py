"""A llama model with random weights, small enough to write in a test: real llama.cpp, meaningless text.

gpt2-type vocabulary of single bytes and a few merges, 2 layers, width 64, context 512, F32. The weights are fixed by a
seed, and the output layer is scaled so that the likeliest token leads clearly: rounding must not decide a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

CONTEXT_LENGTH = 512
WIDTH, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 64, 2, 2, 2, 128
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BOS, EOS, END = "<s>", "</s>", "<|end|>"
_CONTROL = (BOS, EOS, END, "<|user|>", "<|assistant|>", "<|system|>")
_MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("a", "n"), ("Ġ", "the"), ("Ã", "¼"))


def write_tiny_model(
    path: Path,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    seed: int = 7,
    deltas: Mapping[str, np.ndarray] | None = None,
    more_control: tuple[str, ...] = (),
) -> Path:
    """Write the model file and return its path; a second call with the same path is free.

    `deltas` are added to the weights of their names; `more_control` are further control tokens."""
    if path.exists():
        return path
    tokens, types = _vocabulary(_CONTROL + more_control)
    scratch = path.with_suffix(".part")
    writer = gguf.GGUFWriter(scratch, "llama")
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in _MERGES])
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(EOS))
    writer.add_eot_token_id(tokens.index(END))
    writer.add_add_bos_token(True)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for name, array in _weights(len(tokens), np.random.default_rng(seed)):
        writer.add_tensor(name, array + deltas[name] if deltas and name in deltas else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    scratch.rename(path)
    return path


def _vocabulary(control_tokens: tuple[str, ...]) -> tuple[list[str], list[int]]:
    letters = sorted(_byte_letters())
    words = ["".join(pair) for pair in _MERGES]
    tokens = letters + words + list(control_tokens)
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    return tokens, [normal] * (len(letters) + len(words)) + [control] * len(control_tokens)


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _weights(vocabulary_size: int, random: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)

    ones = np.ones(WIDTH, dtype=np.float32)
    named = [
        ("token_embd.weight", matrix(vocabulary_size, WIDTH, 8.0)),
        ("output_norm.weight", ones),
        ("output.weight", matrix(vocabulary_size, WIDTH, 12.0)),
    ]
    for layer in range(LAYERS):
        named += [
            (f"blk.{layer}.attn_norm.weight", ones),
            (f"blk.{layer}.ffn_norm.weight", ones),
            (f"blk.{layer}.attn_q.weight", matrix(WIDTH, WIDTH, 3.0)),
            (f"blk.{layer}.attn_k.weight", matrix(WIDTH * KV_HEADS // HEADS, WIDTH, 3.0)),
            (f"blk.{layer}.attn_v.weight", matrix(WIDTH * KV_HEADS // HEADS, WIDTH, 3.0)),
            (f"blk.{layer}.attn_output.weight", matrix(WIDTH, WIDTH, 3.0)),
            (f"blk.{layer}.ffn_gate.weight", matrix(FEED_FORWARD, WIDTH, 3.0)),
            (f"blk.{layer}.ffn_up.weight", matrix(FEED_FORWARD, WIDTH, 3.0)),
            (f"blk.{layer}.ffn_down.weight", matrix(WIDTH, FEED_FORWARD, 3.0)),
        ]
    return named
