"""What a GGUF file is for, by its metadata: text, vectors or scores, and how its rows are pooled. Pure.

    1  `<architecture>.pooling_type` rank, or a classifier and no pooling type: a reranker
    2  any other pooling type but none, or an architecture of encoders: an embedding model
    3  everything else generates text

models.yaml overrides both. Pooling types as in llama.h (enum llama_pooling_type).
"""

from __future__ import annotations

from typing import Literal

from tasks.fleet import ModelKind
from workers.gguf_header import GgufHeader

Pooling = Literal["mean", "cls", "last"]

# They see a whole input at once and keep no KV cache.
ENCODERS = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
    }
)
_NONE, _RANK = 0, 4


def kind_of(header: GgufHeader) -> ModelKind:
    pooling = header.model_number("pooling_type", _NONE)
    if pooling == _RANK or (pooling == _NONE and header.has_classifier):
        return ModelKind.RERANK
    if pooling != _NONE or header.architecture in ENCODERS:
        return ModelKind.EMBED
    return ModelKind.GENERATE


def pooling_of(header: GgufHeader, kind: ModelKind, wished: Pooling | None) -> str | None:
    """What to tell llama.cpp; None: do as the file says.

    A file that says nothing gets what most models of its sort were trained with: the mean of an encoder's tokens, the
    last token of a decoder."""
    match kind:
        case ModelKind.GENERATE:
            return None
        case ModelKind.RERANK:
            return "rank"
    stored = header.model_number("pooling_type", _NONE)
    if wished is not None or stored not in (_NONE, _RANK):
        return wished
    return "mean" if header.architecture in ENCODERS else "last"
