"""KV cache types by name: what keys and values are stored as, as ggml numbers it (enum ggml_type). Pure.

On a CPU llama.cpp computes attention over an f16 cache in three ways (one row, tiles of 64 rows, split over threads),
by the shape of the batch, and their sums round differently: a resumed text could leave the undisturbed one at a near
tie. For all other types there is one way only, so with steady weights (`gguf_types.STEADY`) logits are the same to the
bit. Of these keys in bf16 and values in f16 are the quickest by far: the CPU has instructions for both, while values in
bf16 are converted one by one (ggml-cpu/ops.cpp, flash_attn_ext).
"""

from __future__ import annotations

GGML_TYPES = {"f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}

STEADY = "bf16/f16"  # attention rounds alike in any batch, at nearly the speed of f16

KV_TYPES = (*GGML_TYPES, STEADY)


def keys_and_values(kv_type: str) -> tuple[str, str]:
    """The names of both types in one of KV_TYPES."""
    keys, _, values = kv_type.partition("/")
    return keys, values or keys
