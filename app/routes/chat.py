"""POST /v1/chat/completions, as official OpenAI clients use it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.admission import chat_request, num_choices
from app.choices import answer_with_choices
from app.front import FrontDep
from app.idempotency import IdempotencyKey, fingerprint
from app.json_body import JsonBodyRoute
from app.openai_forms import ChatForm
from app.openapi import OPENAI_ERRORS, SSE_TOO
from app.schemas.answers import ChatCompletion
from app.schemas.openai import ChatBody
from app.service_tiers import served_tier
from app.tool_forms import ToolChatForm
from tasks.attachments import Attachments
from tasks.jobs import Job

router = APIRouter(tags=["OpenAI"], responses=OPENAI_ERRORS, route_class=JsonBodyRoute)


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation, whole or as a stream",
    response_model=ChatCompletion,
    responses=SSE_TOO,
)
async def create_chat_completion(
    body: ChatBody, request: Request, front: FrontDep, idempotency_key: IdempotencyKey
) -> Response:
    offer = await front.view.resolve(body.model)
    generation = chat_request(body, offer, front.settings)
    await front.grammars.check(generation)

    def form_of(job: Job, index: int) -> ChatForm:
        tier = served_tier(body.service_tier, job.priority)
        if generation.tools:
            return ToolChatForm(job, generation, include_usage=body.include_usage, index=index, service_tier=tier)
        return ChatForm(job, include_usage=body.include_usage, index=index, service_tier=tier)

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
