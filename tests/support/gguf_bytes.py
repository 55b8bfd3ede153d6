"""GGUF files of a few hundred bytes, right or broken on purpose, written from the specification alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

LLAMA: dict[str, object] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "general.file_type": 0,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
LORA: dict[str, object] = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}
ONE_TENSOR = (("token_embd.weight", (64, 3), 0),)  # F32


def gguf_bytes(
    metadata: Mapping[str, object] = LLAMA,
    tensors: Sequence[tuple[str, tuple[int, ...], int]] = ONE_TENSOR,
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    tensor_count: int | None = None,
    metadata_count: int | None = None,
    data: bytes | None = None,
) -> bytes:
    """A file with these entries; counts and data may lie. Only F32 tensors get data of the right size."""
    head = magic + struct.pack("<I", version)
    head += struct.pack("<Q", len(tensors) if tensor_count is None else tensor_count)
    head += struct.pack("<Q", len(metadata) if metadata_count is None else metadata_count)
    for key, value in metadata.items():
        head += string(key) + _typed(value)
    offset = 0
    for name, dimensions, kind in tensors:
        head += string(name) + struct.pack("<I", len(dimensions))
        head += b"".join(struct.pack("<Q", each) for each in dimensions)
        head += struct.pack("<IQ", kind, offset)
        offset += 4 * _product(dimensions)
    head += b"\0" * (-len(head) % 32)
    return head + (b"\0" * offset if data is None else data)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _product(numbers: Sequence[int]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product


def _typed(value: object) -> bytes:
    if isinstance(value, bytes):
        return value  # type number and value, as given
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + string(value)
    assert isinstance(value, list)
    kind = 8 if value and isinstance(value[0], str) else 4
    elements = b"".join(string(each) if kind == 8 else struct.pack("<I", each) for each in value)
    return struct.pack("<IIQ", 9, kind, len(value)) + elements
