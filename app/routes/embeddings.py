"""POST /v1/embeddings, as official OpenAI clients use it."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.answering import answer_whole
from app.encoding_admission import embedding_request
from app.encoding_forms import EmbeddingForm
from app.front import FrontDep
from app.idempotency import IdempotencyKey, fingerprint
from app.json_body import JsonBodyRoute
from app.openapi import OPENAI_ERRORS
from app.schemas.answers import EmbeddingList
from app.schemas.encoding import EmbeddingBody

router = APIRouter(tags=["OpenAI"], responses=OPENAI_ERRORS, route_class=JsonBodyRoute)


@router.post("/v1/embeddings", summary="One vector per text", response_model=EmbeddingList)
async def create_embeddings(
    body: EmbeddingBody, request: Request, front: FrontDep, idempotency_key: IdempotencyKey
) -> Response:
    offer = await front.view.resolve(body.model)
    return await answer_whole(
        front,
        request,
        embedding_request(body, offer, front.settings),
        offer=offer,
        priority=body.level,
        form_of=partial(EmbeddingForm, body=body),
        idempotency_key=idempotency_key,
        fingerprint=fingerprint(idempotency_key, request.url.path, body),
    )
