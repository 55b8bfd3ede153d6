"""Offers of a worker: every model of its folder, what it costs here and, if it can't serve, the reason. No pool."""

from __future__ import annotations

from tasks.fleet import ModelOffer
from workers.costs import ModelCosts
from workers.model_files import ModelFile, UnusableFile


def offer_of(model: ModelFile, costs: ModelCosts, *, failure: str | None, may_retry: bool) -> ModelOffer:
    """`failure`: why it can't serve; `may_retry`: the pause after that is over."""
    return ModelOffer(
        id=model.id,
        aliases=model.aliases,
        context_length=model.context_length,
        slots=model.slots,
        bytes=costs.need(model).total_bytes,
        load_ms=costs.load_ms(model),
        file_bytes=model.file_bytes,
        description=model.description,
        pinned=model.is_pinned,
        ttl_s=model.ttl_s,
        replicas=model.replicas,
        max_replicas=model.max_replicas,
        fallback=model.fallback,
        devices=model.devices,
        failure=failure,
        may_retry=may_retry,
        kind=model.kind,
        embedding_length=model.shape.embedding_length,
        is_matryoshka=model.is_matryoshka,
        estimate_error=costs.estimate_error(model),
        reduced=model.reduced,
        fingerprint=model.fingerprint,
        cache=model.cache,
    )


def offer_of_unusable(file: UnusableFile) -> ModelOffer:
    return ModelOffer(
        id=file.id,
        context_length=0,
        slots=0,
        bytes=0,
        load_ms=0,
        file_bytes=file.file_bytes,
        failure=file.reason,
    )
