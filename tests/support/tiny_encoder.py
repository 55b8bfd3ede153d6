"""BERT models with random weights, small enough to write in a test: an embedding model and a reranker.

WordPiece vocabulary of letters and a few words, 2 layers, width 32, context 64, F32. `reference` computes what they
should answer, from the definition of BERT (Devlin et al. 2018) and not from llama.cpp.
"""

from __future__ import annotations

import string
from pathlib import Path

import gguf
import numpy as np

CONTEXT_LENGTH, WIDTH, LAYERS, HEADS, FEED_FORWARD = 64, 32, 2, 4, 64
EPSILON = 1e-12
MEAN, CLS, RANK = gguf.PoolingType.MEAN, gguf.PoolingType.CLS, gguf.PoolingType.RANK
PAD_ID, UNK_ID, CLS_ID, SEP_ID = 0, 1, 2, 3
_WORDS = ("the", "cat", "dog", "river", "warm", "cold", "queue", "model")
TOKENS = (
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    + ["\u2581" + word for word in _WORDS]
    + ["\u2581" + letter for letter in string.ascii_lowercase]
    + list(string.ascii_lowercase)
)


def ids_of(*words: str) -> list[int]:
    """The ids of known words, without the special ones."""
    return [TOKENS.index("\u2581" + word) for word in words]


def write_tiny_encoder(
    path: Path,
    *,
    pooling: gguf.PoolingType | None = MEAN,
    seed: int = 3,
    context_length: int = CONTEXT_LENGTH,
    unused_tokens: int = 0,
) -> Path:
    """Write the model file and return its path. With RANK it has a classifier; None: the file doesn't say how."""
    tokens = TOKENS + [f"[unused{number}]" for number in range(unused_tokens)]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny encoder")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context_length)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(EPSILON)
    writer.add_causal_attention(False)
    writer.add_vocab_size(len(tokens))
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_token_types([control] * 4 + [normal] * (len(tokens) - 4))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(PAD_ID)
    writer.add_unk_token_id(UNK_ID)
    writer.add_bos_token_id(CLS_ID)  # llama.cpp puts it first, as it does a BOS
    writer.add_sep_token_id(SEP_ID)
    for name, array in weights(has_classifier=pooling == RANK, seed=seed, context_length=context_length).items():
        if name == "token_embd.weight":
            array = np.concatenate([array, np.zeros((unused_tokens, WIDTH), np.float32)])
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(*, has_classifier: bool, seed: int = 3, context_length: int = CONTEXT_LENGTH) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def vector(size: int, around: float = 0.0) -> np.ndarray:
        return (around + 0.1 * random.standard_normal(size)).astype(np.float32)

    named = {
        "token_embd.weight": matrix(len(TOKENS), WIDTH),
        "token_types.weight": matrix(2, WIDTH),
        "position_embd.weight": matrix(context_length, WIDTH),
        "token_embd_norm.weight": vector(WIDTH, 1.0),
        "token_embd_norm.bias": vector(WIDTH),
    }
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            named[f"blk.{layer}.{name}.weight"] = matrix(WIDTH, WIDTH)
            named[f"blk.{layer}.{name}.bias"] = vector(WIDTH)
        named[f"blk.{layer}.ffn_up.weight"] = matrix(FEED_FORWARD, WIDTH)
        named[f"blk.{layer}.ffn_up.bias"] = vector(FEED_FORWARD)
        named[f"blk.{layer}.ffn_down.weight"] = matrix(WIDTH, FEED_FORWARD)
        named[f"blk.{layer}.ffn_down.bias"] = vector(WIDTH)
        for name in ("attn_output_norm", "layer_output_norm"):
            named[f"blk.{layer}.{name}.weight"] = vector(WIDTH, 1.0)
            named[f"blk.{layer}.{name}.bias"] = vector(WIDTH)
    if has_classifier:
        named |= {
            "cls.weight": matrix(WIDTH, WIDTH),
            "cls.bias": vector(WIDTH),
            "cls.output.weight": matrix(1, WIDTH) * 3,
            "cls.output.bias": vector(1),
        }
    return named


def reference(tokens: list[int], pooling: gguf.PoolingType, *, seed: int = 3) -> np.ndarray:
    """A vector of length 1, or for RANK one score from 0 to 1."""
    named = {name: each.astype(np.float64) for name, each in weights(has_classifier=pooling == RANK, seed=seed).items()}
    state = named["token_embd.weight"][tokens] + named["token_types.weight"][0]
    state = state + named["position_embd.weight"][: len(tokens)]
    state = _norm(named, "token_embd_norm", state)
    for layer in range(LAYERS):
        state = _layer(named, f"blk.{layer}.", state)
    if pooling == RANK:
        hidden = np.tanh(named["cls.weight"] @ state[0] + named["cls.bias"])
        logit = named["cls.output.weight"] @ hidden + named["cls.output.bias"]
        return 1 / (1 + np.exp(-logit))
    pooled = state.mean(axis=0) if pooling == MEAN else state[0]
    return pooled / np.linalg.norm(pooled)


def _layer(named: dict[str, np.ndarray], layer: str, state: np.ndarray) -> np.ndarray:
    def project(name: str, inputs: np.ndarray) -> np.ndarray:
        return inputs @ named[f"{layer}{name}.weight"].T + named[f"{layer}{name}.bias"]

    def heads(name: str) -> np.ndarray:
        return project(name, state).reshape(len(state), HEADS, -1).transpose(1, 0, 2)

    query, key, value = heads("attn_q"), heads("attn_k"), heads("attn_v")
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attention = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    attention = project("attn_output", attention.transpose(1, 0, 2).reshape(len(state), WIDTH))
    state = _norm(named, f"{layer}attn_output_norm", attention + state)
    inner = project("ffn_up", state)
    inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))  # GELU
    return _norm(named, f"{layer}layer_output_norm", project("ffn_down", inner) + state)


def _norm(named: dict[str, np.ndarray], name: str, state: np.ndarray) -> np.ndarray:
    centred = state - state.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    return scaled * named[f"{name}.weight"] + named[f"{name}.bias"]
