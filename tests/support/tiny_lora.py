"""A LoRA adapter with random factors, for the tiny model or another llama, and the change of weights it stands for."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.support.tiny_model import FEED_FORWARD, LAYERS, WIDTH

RANK, ALPHA = 4, 8.0


def write_tiny_lora(
    path: Path,
    *,
    architecture: str = "llama",
    seed: int = 11,
    layers: int = LAYERS,
    width: int = WIDTH,
    feed_forward: int = FEED_FORWARD,
    is_nan: bool = False,
) -> dict[str, np.ndarray]:
    """The weights' change at scale 1: alpha / rank · B·A (Hu et al. 2021, section 4.1)."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    deltas: dict[str, np.ndarray] = {}
    for layer in range(layers):
        for name, rows, columns in (("attn_q", width, width), ("ffn_up", feed_forward, width)):
            down = random.standard_normal((RANK, columns)).astype(np.float32)
            up = random.standard_normal((rows, RANK)).astype(np.float32)
            if is_nan:
                up[:] = np.nan
            weight = f"blk.{layer}.{name}.weight"
            writer.add_tensor(f"{weight}.lora_a", down)
            writer.add_tensor(f"{weight}.lora_b", up)
            deltas[weight] = (ALPHA / RANK * (up @ down)).astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return deltas
