"""KV cache types by name, as ggml numbers them (enum ggml_type). Pure."""

from __future__ import annotations

KV_TYPES = {"f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}
