"""From a client's body to a GenerationRequest. Pure: no store, no clock; only the seed is drawn here.

How many tokens a prompt has only the model's runner can count. What holds before that: a tokenizer with byte
fallback makes at most one token per UTF-8 byte, so a prompt with fewer bytes than the context fits for all but the
template's own tokens, and only a longer one is in doubt.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

from app.errors import NotSupportedYet
from app.formats import answer_format
from app.responses.fields import response_format, response_logprobs, response_tools
from app.schemas.jobs import MAX_DEADLINE_S, JobBody
from app.schemas.openai import ChatBody, ChatFields, CompletionBody, Message, SamplingFields
from app.schemas.responses import ResponseBody
from app.settings import ApiSettings
from app.tools import NO_TOOLS, tool_calls, tool_use
from tasks.errors import InvalidRequest, WrongModelKind
from tasks.fleet import ModelKind, ModelOffer
from tasks.generation import MAX_SEED, ChatMessage, GenerationRequest, SamplingParams

_SAMPLING = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
)


def chat_request(body: ChatBody, offer: ModelOffer, limits: ApiSettings) -> GenerationRequest:
    """Raises InvalidRequest."""
    return _request(body, offer, limits, logprobs=_chat_logprobs(body), messages=_messages(body, limits))


def completion_request(body: CompletionBody, offer: ModelOffer, limits: ApiSettings) -> GenerationRequest:
    """Raises InvalidRequest."""
    if body.echo:
        raise NotSupportedYet("echo", "prepend the prompt yourself.")
    if body.suffix:
        raise NotSupportedYet("suffix", "these models continue text, they don't fill gaps.")
    if body.best_of not in (None, body.n or 1):
        raise NotSupportedYet("best_of", "nobody here ranks choices; ask for n of them and choose.")
    return _request(body, offer, limits, logprobs=body.logprobs, prompt=body.prompt)


def num_choices(body: SamplingFields, limits: ApiSettings) -> int:
    """Raises InvalidRequest."""
    n = body.n or 1
    if n > limits.max_choices:
        raise InvalidRequest(f"n: at most {limits.max_choices} choices per request, not {n}.", param="n")
    return n


def job_request(body: JobBody, offer: ModelOffer, limits: ApiSettings) -> GenerationRequest:
    """Raises InvalidRequest."""
    if body.n not in (None, 1):
        raise NotSupportedYet("n", "a job has one answer; send several jobs.")
    if (body.messages is None) == (body.prompt is None):
        raise InvalidRequest("Send exactly one of 'messages' and 'prompt'.", param="messages")
    if body.tools and body.messages is None:
        raise InvalidRequest("tools: need 'messages', which a chat template turns into a prompt.", param="tools")
    messages = None if body.messages is None else _messages(body, limits)
    return _request(body, offer, limits, logprobs=_chat_logprobs(body), messages=messages, prompt=body.prompt)


def response_request(
    body: ResponseBody, messages: tuple[ChatMessage, ...], offer: ModelOffer, limits: ApiSettings
) -> GenerationRequest:
    """`messages`: the conversation with the body's own input. Raises InvalidRequest."""
    require_kind(offer, ModelKind.GENERATE)
    return GenerationRequest(
        model=offer.id,
        messages=messages,
        sampling=_sampling(body, limits),
        max_tokens=body.max_output_tokens,
        stop=_stop(body.stop, limits),
        ignore_eos=body.ignore_eos,
        logprobs=response_logprobs(body),
        answer_format=response_format(body, limits),
        **response_tools(body, limits)._asdict(),
    )


def require_kind(offer: ModelOffer, kind: ModelKind) -> None:
    """Raises WrongModelKind, which names the route that the model is for."""
    if offer.kind is not kind:
        raise WrongModelKind(offer.id, offer.kind)


def deadline_ms(deadline: float | datetime | None, now_ms: int) -> int | None:
    """A client's deadline by the store's clock. Raises InvalidRequest for one that has passed."""
    match deadline:
        case None:
            return None
        case datetime():
            at_ms = int(deadline.timestamp() * 1000)
        case _:
            at_ms = now_ms + int(deadline * 1000)
    if at_ms <= now_ms:
        raise InvalidRequest("deadline: must lie in the future (seconds from now, or a time).", param="deadline")
    if at_ms - now_ms > MAX_DEADLINE_S * 1000:
        raise InvalidRequest(f"deadline: at most {MAX_DEADLINE_S} seconds from now.", param="deadline")
    return at_ms


def may_be_too_long(request: GenerationRequest, offer: ModelOffer) -> bool:
    """Whether the prompt could have more tokens than the context holds."""
    texts = [request.prompt or ""] + [message.content for message in request.messages or ()]
    texts += [tool.definition for tool in request.tools]
    return sum(len(text.encode()) for text in texts) > offer.context_length


def _request(
    body: SamplingFields,
    offer: ModelOffer,
    limits: ApiSettings,
    *,
    logprobs: int | None,
    messages: tuple[ChatMessage, ...] | None = None,
    prompt: str | None = None,
) -> GenerationRequest:
    require_kind(offer, ModelKind.GENERATE)
    max_tokens, use = body.max_tokens, NO_TOOLS
    if isinstance(body, ChatFields):
        use = tool_use(body, limits)
        max_tokens = body.max_completion_tokens or max_tokens
    return GenerationRequest(
        model=offer.id,
        messages=messages,
        prompt=prompt,
        sampling=_sampling(body, limits),
        max_tokens=max_tokens,
        stop=_stop(body.stop, limits),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        answer_format=answer_format(body, limits),
        **use._asdict(),
    )


def _sampling(body: SamplingFields, limits: ApiSettings) -> SamplingParams:
    given = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        given["top_k"] = max(body.top_k, 0)
    bias = body.logit_bias or {}
    if len(bias) > limits.max_logit_bias:
        raise InvalidRequest(f"logit_bias: at most {limits.max_logit_bias} entries.", param="logit_bias")
    seed = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed % MAX_SEED
    return SamplingParams(seed=seed, logit_bias=bias, **given)


def _stop(stop: Sequence[str], limits: ApiSettings) -> tuple[str, ...]:
    if len(stop) > limits.max_stop:
        raise InvalidRequest(f"stop: at most {limits.max_stop} strings.", param="stop")
    for text in stop:
        if not 0 < len(text) <= limits.max_stop_chars:
            raise InvalidRequest(f"stop: a string must have 1 to {limits.max_stop_chars} characters.", param="stop")
    return tuple(dict.fromkeys(stop))


def _chat_logprobs(fields: ChatFields) -> int | None:
    if fields.logprobs:
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true.", param="top_logprobs")
    return None


def _messages(body: ChatBody | JobBody, limits: ApiSettings) -> tuple[ChatMessage, ...]:
    _refuse_unsupported(body)
    messages = body.messages or []
    if len(messages) > limits.max_messages:
        raise InvalidRequest(f"messages: at most {limits.max_messages}.", param="messages")
    return tuple(_message(index, message) for index, message in enumerate(messages))


def _message(index: int, message: Message) -> ChatMessage:
    for position, part in enumerate(message.content):
        if part.type != "text":
            raise NotSupportedYet(
                f"messages[{index}].content[{position}]", f"only parts of type text, and this is {part.type[:40]!r}."
            )
    return ChatMessage(
        role=message.role,
        content=message.text,
        name=message.name,
        tool_calls=tool_calls(index, message),
        tool_call_id=message.tool_call_id,
    )


def _refuse_unsupported(fields: ChatFields) -> None:
    if fields.audio or fields.modalities not in (None, ["text"]):
        raise NotSupportedYet("modalities", "only text.")
    if fields.web_search_options:
        raise NotSupportedYet("web_search_options", "put what was found into the prompt.")
