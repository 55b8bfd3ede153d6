"""What a job asks of an embedding model or a reranker. Validated at the HTTP edge, stored in the job record. Pure."""

from __future__ import annotations

import msgspec


class EncodingRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="encode"):
    """One row of numbers per input, in the order of the inputs: a vector, or with a `query` a single score.

    Exactly one of `texts` and `token_ids` is set."""

    model: str
    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()  # inputs that the client has tokenised, special tokens included
    query: str | None = None  # set: how well does each text answer it
    dimensions: int | None = None  # keep so many numbers of each vector; None: all
