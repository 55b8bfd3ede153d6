"""POST /v1/rerank: which texts answer a query best."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.answering import answer_whole
from app.encoding_admission import rerank_request
from app.encoding_forms import RankingForm
from app.front import FrontDep
from app.idempotency import IdempotencyKey, fingerprint
from app.json_body import JsonBodyRoute
from app.openapi import OPENAI_ERRORS
from app.schemas.answers import Ranking
from app.schemas.encoding import RerankBody

router = APIRouter(tags=["OpenAI"], responses=OPENAI_ERRORS, route_class=JsonBodyRoute)


@router.post("/v1/rerank", summary="Order texts by how well they answer a query", response_model=Ranking)
async def create_ranking(
    body: RerankBody, request: Request, front: FrontDep, idempotency_key: IdempotencyKey
) -> Response:
    offer = await front.view.resolve(body.model)
    return await answer_whole(
        front,
        request,
        rerank_request(body, offer, front.settings),
        offer=offer,
        priority=body.level,
        form_of=partial(RankingForm, body=body),
        idempotency_key=idempotency_key,
        fingerprint=fingerprint(idempotency_key, request.url.path, body),
    )
