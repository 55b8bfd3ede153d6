"""Offers of a worker: every model and adapter of its folder, its cost here and, if it can't serve, why. No pool."""

from __future__ import annotations

from tasks.fleet import ModelOffer
from workers.costs import ModelCosts
from workers.model_files import AdapterFile, ModelFile, UnusableFile, adapter_fingerprint


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


def offer_of_adapter(adapter: AdapterFile, base: ModelOffer, *, failure: str | None) -> ModelOffer:
    """`failure`: why the runner of its base can't serve it; what stands in the base's way stands in its way too."""
    return ModelOffer(
        id=adapter.id,
        base=base.id,
        aliases=adapter.aliases,
        context_length=base.context_length,
        slots=base.slots,
        bytes=adapter.tensor_bytes,
        load_ms=base.load_ms,
        file_bytes=adapter.file_bytes,
        description=f"{base.description} + LoRA",
        fallback=adapter.fallback,
        devices=base.devices,
        failure=failure or base.failure,
        may_retry=failure is None and base.may_retry,
        kind=base.kind,
        embedding_length=base.embedding_length,
        is_matryoshka=base.is_matryoshka,
        reduced=base.reduced,
        fingerprint=adapter_fingerprint(base.fingerprint, adapter.id),
        cache=adapter.cache,
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
        aliases=file.aliases,
        fallback=file.fallback,
    )
