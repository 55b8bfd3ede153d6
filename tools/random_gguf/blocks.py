"""Random numbers in the stored form of llama.cpp's block types, so that nothing has to be quantised.

Sources of the layouts: `ggml-common.h` of llama.cpp. Each row of a matrix has a standard deviation of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

Bytes = npt.NDArray[np.uint8]


def _q8_0(random: np.random.Generator, rows: int, columns: int, std: npt.NDArray[np.float32]) -> Bytes:
    """Block of 32: f16 scale, 32 signed bytes."""
    blocks = np.empty((rows, columns // 32, 34), np.uint8)
    blocks[:, :, :2] = _scales(random, std / 73.0, columns // 32)
    values = np.frombuffer(random.bytes(rows * columns), np.int8).reshape(rows, -1, 32)
    blocks[:, :, 2:] = np.maximum(values, -127).view(np.uint8)  # no quantiser writes -128
    return blocks.reshape(rows, -1)


def _q4_0(random: np.random.Generator, rows: int, columns: int, std: npt.NDArray[np.float32]) -> Bytes:
    """Block of 32: f16 scale, 32 half bytes with an offset of 8."""
    blocks = np.empty((rows, columns // 32, 18), np.uint8)
    blocks[:, :, :2] = _scales(random, std / 4.61, columns // 32)
    blocks[:, :, 2:] = np.frombuffer(random.bytes(rows * columns // 2), np.uint8).reshape(rows, -1, 16)
    return blocks.reshape(rows, -1)


def _q6_k(random: np.random.Generator, rows: int, columns: int, std: npt.NDArray[np.float32]) -> Bytes:
    """Block of 256: low four and high two bits of 256 values with an offset of 32, 16 signed scales, f16 scale."""
    scale = 8
    blocks = np.empty((rows, columns // 256, 210), np.uint8)
    blocks[:, :, :192] = np.frombuffer(random.bytes(rows * columns * 3 // 4), np.uint8).reshape(rows, -1, 192)
    blocks[:, :, 192:208] = scale
    blocks[:, :, 208:] = _scales(random, std / (18.5 * scale), columns // 256)
    return blocks.reshape(rows, -1)


BLOCKS: dict[Kind, Callable[[np.random.Generator, int, int, npt.NDArray[np.float32]], Bytes]] = {
    Kind.Q8_0: _q8_0,
    Kind.Q4_0: _q4_0,
    Kind.Q6_K: _q6_k,
}


def _scales(random: np.random.Generator, magnitudes: npt.NDArray[np.float32], blocks: int) -> Bytes:
    """f16, one magnitude per row, with a random sign per block: numbers with an offset are not centred (-8 … 7), and
    signs keep that from adding up to a direction which all rows share."""
    bits = np.repeat(magnitudes.astype(np.float16).view(np.uint16)[:, None], blocks, axis=1)
    bits ^= random.integers(0, 2, bits.shape, np.uint16) << np.uint16(15)
    return bits[:, :, None].view(np.uint8)


def num_bytes(kind: Kind, rows: int, columns: int) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return rows * columns // block * size
