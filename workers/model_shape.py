"""What the headers of a model's files say of its shape. They are untrusted: figures that no model has are refused."""

from __future__ import annotations

from collections.abc import Sequence

from workers.estimate import ModelShape
from workers.gguf_header import BrokenModelFile, GgufHeader
from workers.gguf_types import STEADY
from workers.model_kind import ENCODERS

MAX_LAYERS = 4096
MAX_FIGURE = 2**31  # embedding, heads, vocabulary: beyond this the header is nonsense

_NO_LANGUAGE_MODEL = {
    "clip": "a multimodal projector",
    "adapter": "a LoRA adapter (models.yaml may name its `base`)",
    "imatrix": "an importance matrix",
}


def shape_of(headers: Sequence[GgufHeader]) -> ModelShape:
    """Raises BrokenModelFile."""
    first = headers[0]
    kind = first.text("general.type") or ""
    for name in (first.architecture, kind):
        if name in _NO_LANGUAGE_MODEL:
            raise BrokenModelFile(f"it is {_NO_LANGUAGE_MODEL[name]}, not a language model")
    if not any(header.tensor_count for header in headers):
        raise BrokenModelFile("it has no tensors (a vocabulary only?)")
    layers = figure_of(first, "block_count", at_least=1)
    if layers > MAX_LAYERS:
        raise BrokenModelFile(f"it claims {layers} layers")
    embedding = figure_of(first, "embedding_length", at_least=1)
    heads = max(first.per_layer("attention.head_count", 0, layers))
    kv_heads = first.per_layer("attention.head_count_kv", heads, layers)
    head_length = embedding // heads if heads > 0 else 0
    if first.architecture in ENCODERS:
        kv_heads = (0,) * layers
    shape = ModelShape(
        weight_bytes=sum(header.tensor_bytes for header in headers),
        vocabulary_size=first.vocabulary_size,
        embedding_length=embedding,
        feed_forward_length=max(first.per_layer("feed_forward_length", 4 * embedding, layers)),
        heads=heads,
        kv_heads=kv_heads,
        key_length=first.model_number("attention.key_length", head_length),
        value_length=first.model_number("attention.value_length", head_length),
    )
    figures = (shape.vocabulary_size, shape.feed_forward_length, heads, shape.key_length, shape.value_length, *kv_heads)
    if not all(0 <= figure < MAX_FIGURE for figure in figures):
        raise BrokenModelFile("its metadata holds figures that no model has")
    return shape


def has_steady_weights(headers: Sequence[GgufHeader]) -> bool:
    """Whether all matrices are of types by which a row of logits is the same in any batch, on CPUs."""
    return all(header.matrix_types <= STEADY for header in headers)


def figure_of(header: GgufHeader, name: str, *, at_least: int) -> int:
    """Raises BrokenModelFile when no model has such a figure."""
    value = header.model_number(name, 0)
    if not at_least <= value < MAX_FIGURE:
        raise BrokenModelFile(f"its metadata gives {header.architecture}.{name} as {value}")
    return value


def description_of(headers: Sequence[GgufHeader]) -> str:
    """`llama 1.8M Q8_0`"""
    parameters = sum(header.parameters for header in headers)
    return f"{headers[0].architecture[:40]} {_short_count(parameters)} {headers[0].file_type}"


def _short_count(count: int) -> str:
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)
