"""POST /v1/completions, the older text form."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.admission import completion_request, num_choices
from app.choices import answer_with_choices
from app.front import FrontDep
from app.idempotency import IdempotencyKey, fingerprint
from app.json_body import JsonBodyRoute
from app.openai_forms import TextForm
from app.openapi import OPENAI_ERRORS, SSE_TOO
from app.schemas.answers import TextCompletion
from app.schemas.openai import CompletionBody
from app.service_tiers import served_tier
from tasks.attachments import Attachments
from tasks.jobs import Job

router = APIRouter(tags=["OpenAI"], responses=OPENAI_ERRORS, route_class=JsonBodyRoute)


@router.post(
    "/v1/completions",
    summary="Continue a text, whole or as a stream",
    response_model=TextCompletion,
    responses=SSE_TOO,
)
async def create_completion(
    body: CompletionBody, request: Request, front: FrontDep, idempotency_key: IdempotencyKey
) -> Response:
    offer = await front.view.resolve(body.model)
    generation = completion_request(body, offer, front.settings)
    await front.grammars.check(generation)

    def form_of(job: Job, index: int) -> TextForm:
        tier = served_tier(body.service_tier, job.priority)
        return TextForm(job, include_usage=body.include_usage, index=index, service_tier=tier)

    return await answer_with_choices(
        front,
        request,
        generation,
        num_choices(body, front.settings),
        offer=offer,
        priority=body.level,
        form_of=form_of,
        is_stream=bool(body.stream),
        has_seed=body.seed is not None,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint(idempotency_key, request.url.path, body),
        attached=Attachments(metadata=body.metadata),
    )
