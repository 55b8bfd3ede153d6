"""Word a line's outcome as a line of the output or error file, in OpenAI's form. Pure."""

from __future__ import annotations

import msgspec

from app.batches.line_call import LineAnswer
from app.batches.results import LineResult
from tasks.batches import BatchState, line_id

_encode = msgspec.json.Encoder().encode


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, int] | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


_decode_body = msgspec.json.Decoder(_Body).decode
_UNANSWERED = {
    BatchState.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was answered."),
    BatchState.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}


def answered(batch_id: str, line: int, custom_id: str, answer: LineAnswer) -> LineResult:
    """A request that got a response, be it a refusal."""
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": msgspec.Raw(answer.body)}
    usage = _decode_body(answer.body).usage if answer.is_ok else None
    usage = usage or _Usage()
    return LineResult(
        line=line,
        is_ok=answer.is_ok,
        entry=_entry(batch_id, line, custom_id, response=response, error=None),
        input_tokens=usage.prompt_tokens,
        cached_tokens=(usage.prompt_tokens_details or {}).get("cached_tokens", 0),
        output_tokens=usage.completion_tokens,
    )


def unanswered(batch_id: str, line: int, custom_id: str, end: BatchState) -> LineResult:
    """A request that its batch's end left without a response."""
    code, message = _UNANSWERED[end]
    error = {"code": code, "message": message}
    return LineResult(line=line, is_ok=False, entry=_entry(batch_id, line, custom_id, response=None, error=error))


def _entry(batch_id: str, line: int, custom_id: str, *, response: object, error: object) -> msgspec.Raw:
    return msgspec.Raw(
        _encode({"id": line_id(batch_id, line), "custom_id": custom_id, "response": response, "error": error})
    )
