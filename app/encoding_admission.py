"""From a client's body to an EncodingRequest, and what is wrong with it before any model has seen it. Pure."""

from __future__ import annotations

from app.admission import require_kind
from app.schemas.encoding import EmbeddingBody, RerankBody
from app.settings import ApiSettings
from tasks.encoding import EncodingRequest
from tasks.errors import InvalidRequest
from tasks.fleet import ModelKind, ModelOffer

BYTES_PER_NUMBER = 4


def embedding_request(body: EmbeddingBody, offer: ModelOffer, limits: ApiSettings) -> EncodingRequest:
    """Raises InvalidRequest."""
    require_kind(offer, ModelKind.EMBED)
    _check_count("input", len(body.input), limits)
    for index, each in enumerate(body.input):
        if not each:
            raise InvalidRequest(f"input[{index}]: must not be empty.", param=f"input[{index}]")
    length = _dimensions(body.dimensions, offer) or offer.embedding_length
    most = limits.max_result_bytes // (length * BYTES_PER_NUMBER)
    if len(body.input) > most:
        raise InvalidRequest(
            f"input: {len(body.input)} vectors of {length} numbers are too large an answer; "
            f"send at most {most} inputs at once.",
            param="input",
        )
    return EncodingRequest(
        model=offer.id,
        texts=body.texts,
        token_ids=body.token_ids,
        dimensions=None if length == offer.embedding_length else length,
    )


def rerank_request(body: RerankBody, offer: ModelOffer, limits: ApiSettings) -> EncodingRequest:
    """Raises InvalidRequest."""
    require_kind(offer, ModelKind.RERANK)
    _check_count("documents", len(body.documents), limits)
    return EncodingRequest(model=offer.id, texts=tuple(body.documents), query=body.query)


def _check_count(param: str, count: int, limits: ApiSettings) -> None:
    if count > limits.max_inputs:
        raise InvalidRequest(f"{param}: {count} are too many; send at most {limits.max_inputs} at once.", param=param)


def _dimensions(wished: int | None, offer: ModelOffer) -> int | None:
    """A vector may be cut only where the model was trained for it (Matryoshka representation learning, Kusupati et al.
    2022); of any other the start means nothing, so the wish is refused and not half-honoured."""
    length = offer.embedding_length
    if wished is None or wished == length:
        return wished
    if wished > length:
        raise InvalidRequest(f"dimensions: '{offer.id}' has {length}, not {wished}.", param="dimensions")
    if not offer.is_matryoshka:
        raise InvalidRequest(
            f"dimensions: the vectors of '{offer.id}' have {length} numbers and are not made to be cut to {wished}. "
            "If the model was trained for it, set `matryoshka: true` in models.yaml.",
            param="dimensions",
        )
    return wished
