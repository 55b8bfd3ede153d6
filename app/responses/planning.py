"""From a client's body, and the conversation that it goes on with, to a job and its response. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.admission import response_request
from app.backend import KeptResponse
from app.responses.fields import echo, is_stored, refuse_unsupported
from app.responses.items import chat_messages, input_items, require_calls
from app.responses.output import whole_output
from app.schemas.responses import ResponseBody
from app.settings import ApiSettings
from tasks.errors import InvalidRequest
from tasks.fleet import ModelOffer
from tasks.generation import ChatMessage, GenerationRequest, JsonObject
from tasks.jobs import JobId, JobState
from tasks.responses import StoredResponse, response_id

_PREVIOUS = "previous_response_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedResponse:
    job_id: JobId
    generation: GenerationRequest
    response: StoredResponse
    is_stored: bool


def planned_response(
    body: ResponseBody, offer: ModelOffer, limits: ApiSettings, earlier: Sequence[KeptResponse], job_id: JobId
) -> PlannedResponse:
    """`earlier`: the conversation up to `previous_response_id`, oldest first. Raises InvalidRequest."""
    refuse_unsupported(body)
    stored = is_stored(body, limits)
    if len(earlier) >= limits.max_response_chain:
        message = f"{_PREVIOUS}: at most {limits.max_response_chain} responses in a conversation; begin a new one."
        raise InvalidRequest(message, param=_PREVIOUS)
    history = [item for kept in earlier for item in _turn(kept)]
    items = input_items(body.input, job_id)
    require_calls(history, items)
    generation = response_request(body, _messages(body, history, items, limits), offer, limits)
    response = StoredResponse(
        model=offer.id,
        echo=echo(body, generation.sampling, stored=stored),
        items=items,
        tools=tuple(tool.name for tool in generation.tools),
        previous=earlier[-1].job_id if earlier else None,
        is_background=bool(body.background),
        has_logprobs=generation.logprobs is not None,
    )
    return PlannedResponse(job_id=job_id, generation=generation, response=response, is_stored=stored)


def _turn(kept: KeptResponse) -> list[JsonObject]:
    """What one response adds to a conversation: its input and its answer; its instructions don't go on."""
    outcome = kept.outcome
    if outcome is None or outcome.state is not JobState.SUCCEEDED or outcome.result is None:
        state = "has not ended yet" if outcome is None else f"has no answer: it is {outcome.state.value}"
        message = f"{_PREVIOUS}: '{response_id(kept.job_id)}' {state}."
        raise InvalidRequest(message, param=_PREVIOUS)
    answer = whole_output(kept.job_id, kept.response.tools, outcome.result.text)
    if outcome.result.finish_reason == "length" and answer[-1]["type"] == "function_call":
        message = f"{_PREVIOUS}: '{response_id(kept.job_id)}' was cut short within a call."
        raise InvalidRequest(message, param=_PREVIOUS)
    return [*kept.response.items, *answer]


def _messages(
    body: ResponseBody, history: Sequence[JsonObject], items: Sequence[JsonObject], limits: ApiSettings
) -> tuple[ChatMessage, ...]:
    if len(history) + len(items) > limits.max_messages:
        raise InvalidRequest(f"input: at most {limits.max_messages} items in a conversation.", param="input")
    messages = chat_messages([*history, *items])
    if body.instructions:
        messages = (ChatMessage(role="system", content=body.instructions), *messages)
    texts = [
        text for message in messages for text in (message.content, *(call.arguments for call in message.tool_calls))
    ]
    size = sum(len(text.encode()) for text in texts)
    if size > limits.max_body_bytes:
        message = f"input: the conversation has {size} bytes; at most {limits.max_body_bytes}."
        raise InvalidRequest(message, param="input")
    return messages
