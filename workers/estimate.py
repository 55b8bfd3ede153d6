"""How much memory a model will need and how long it takes to load, before it was ever loaded. Pure.

The formulas follow llama.cpp's allocations: tensors as stored, a KV cache of f16 or quantised rows per layer, compute
buffers that grow with the batch and the vocabulary, one row of logits per sequence and drafted token, or per token of
an encoder's batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workers.byte_text import format_bytes, format_sum
from workers.engine.base import DRAFT_PIECE, DRAFT_TOKENS

MICRO_BATCH = 512  # llama.cpp's n_ubatch, tokens
ENCODER_INPUTS = 64  # of one batch at most; an output row each is there from the start
MEASURED_SLACK = 64  # reserve a 64th more than was measured
LOAD_BYTES_PER_S = 400_000_000  # a cold read from a plain SSD; measured times beat it
PARKED_SHARE = 4  # unless it is set, parked states get a quarter of the KV cache's size,
PARKED_LIMIT_BYTES = 256 * 1024**2  # and no more than this
LOAD_BASE_MS = 600  # start of the process and creation of the context

# Bytes per element of a KV row: f16, q8_0 (34 bytes for 32 elements), q4_0 (18 bytes for 32).
KV_ELEMENT_BYTES: dict[str, tuple[int, int]] = {
    "auto": (2, 1),  # f16, or bf16 and f16
    "f16": (2, 1),
    "bf16": (2, 1),
    "bf16/f16": (2, 1),
    "q8_0": (34, 32),
    "q4_0": (18, 32),
}


class MemoryNeed(Protocol):
    """Bytes to reserve, and where they come from."""

    @property
    def total_bytes(self) -> int: ...

    def explain(self) -> str:
        """`3.2 GiB = weights 2.1 + KV 0.9 + …`"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the formulas need to know of a model."""

    weight_bytes: int
    vocabulary_size: int
    embedding_length: int
    feed_forward_length: int
    heads: int
    kv_heads: tuple[int, ...]  # per layer; 0 for a layer without attention
    key_length: int  # elements per head
    value_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedNeed:
    """The formula's answer, in bytes."""

    weight_bytes: int
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    runner_bytes: int  # the process itself
    draft_bytes: int = 0  # all that a draft model takes
    parked_bytes: int = 0  # bound of the states that are kept beside the KV cache

    @property
    def total_bytes(self) -> int:
        model_bytes = self.weight_bytes + self.kv_bytes + self.compute_bytes + self.output_bytes
        return model_bytes + self.runner_bytes + self.draft_bytes + self.parked_bytes

    def explain(self) -> str:
        return format_sum(
            self.total_bytes,
            (
                ("weights", self.weight_bytes),
                ("KV", self.kv_bytes),
                ("compute", self.compute_bytes),
                ("output", self.output_bytes),
                ("draft", self.draft_bytes),
                ("runner", self.runner_bytes),
                ("parked", self.parked_bytes),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredNeed:
    """What an earlier runner of the same file and settings really took."""

    total_bytes: int

    def explain(self) -> str:
        return f"{format_bytes(self.total_bytes)} (measured)"


def estimate_need(
    shape: ModelShape,
    *,
    context_length: int,
    slots: int,
    kv_type: str,
    runner_bytes: int,
    draft_bytes: int = 0,
    parked_bytes: int = 0,
) -> EstimatedNeed:
    """Memory of one runner with `slots` sequences of `context_length` tokens each."""
    tokens = context_length * slots
    batch = min(MICRO_BATCH, tokens)
    rows = slots + DRAFT_TOKENS
    logits = min(rows, batch) * shape.vocabulary_size * 4
    activations = 4 * batch * max(shape.feed_forward_length, shape.embedding_length) * 4
    attention_mask = context_length * batch * 2  # each slot's tokens see its own context only
    return EstimatedNeed(
        weight_bytes=shape.weight_bytes,
        kv_bytes=kv_bytes(shape, tokens, kv_type),
        compute_bytes=max(logits, activations) + attention_mask,
        output_bytes=rows * shape.vocabulary_size * 4,
        runner_bytes=runner_bytes,
        draft_bytes=draft_bytes,
        parked_bytes=parked_bytes,
    )


def estimate_draft_bytes(shape: ModelShape, *, context_length: int, slots: int, kv_type: str) -> int:
    """Memory of a draft model, which computes small batches and drafts nothing itself."""
    activations = 4 * DRAFT_PIECE * max(shape.feed_forward_length, shape.embedding_length) * 4
    logits = slots * shape.vocabulary_size * 4
    cache = kv_bytes(shape, context_length * slots, kv_type)
    return shape.weight_bytes + cache + max(logits, activations) + context_length * DRAFT_PIECE * 2 + logits


def kv_bytes(shape: ModelShape, tokens: int, kv_type: str) -> int:
    return tokens * sum(_kv_row_bytes(shape, kv_heads, kv_type) for kv_heads in shape.kv_heads)


def parked_bytes(shape: ModelShape, *, context_length: int, slots: int, kv_type: str, wished: int | None) -> int:
    """Main memory for the states of sequences and conversations that lost their slot, at most."""
    if wished is not None:
        return wished
    return min(PARKED_LIMIT_BYTES, kv_bytes(shape, context_length * slots, kv_type) // PARKED_SHARE)


def need_of_measured(measured_bytes: int, parked_bytes: int = 0) -> MeasuredNeed:
    """With a little slack: two runs of the same load differ by some pages, and those must not make a load fail.

    Parked states come on top: when a runner is measured, there are none yet."""
    return MeasuredNeed(total_bytes=measured_bytes + measured_bytes // MEASURED_SLACK + parked_bytes)


def estimate_encoding_need(shape: ModelShape, *, input_length: int, kv_type: str, runner_bytes: int) -> EstimatedNeed:
    """Memory of an embedding model or reranker, which computes a whole input within one micro-batch. The output buffer
    has room for a row of logits per token, though they are never computed."""
    activations = 4 * input_length * max(shape.feed_forward_length, shape.embedding_length) * 4
    return EstimatedNeed(
        weight_bytes=shape.weight_bytes,
        kv_bytes=kv_bytes(shape, input_length, kv_type),
        compute_bytes=activations + input_length * input_length * 2,
        output_bytes=max(input_length, ENCODER_INPUTS) * (shape.vocabulary_size + shape.embedding_length) * 4,
        runner_bytes=runner_bytes,
    )


def estimate_load_ms(weight_bytes: int) -> int:
    """Time from spawn to ready when nothing was measured yet."""
    return LOAD_BASE_MS + weight_bytes * 1000 // LOAD_BYTES_PER_S


def _kv_row_bytes(shape: ModelShape, kv_heads: int, kv_type: str) -> int:
    """Bytes of one token in one layer, keys and values."""
    numerator, denominator = KV_ELEMENT_BYTES[kv_type]
    elements = kv_heads * (shape.key_length + shape.value_length)
    return -(-elements * numerator // denominator)
