"""OpenAI's response object in all its states. Pure.

What a stream says of a response before its end never depends on when it is said, so that every reading of the stream
has the same events.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.error_handlers import facts_of
from app.errors import error_of
from app.responses.output import whole_output
from tasks.generation import JsonObject, TokenLogprob
from tasks.jobs import Job, JobId, JobState, Usage
from tasks.responses import Outcome, StoredResponse, response_id
from tasks.stream_events import End

_OPEN = {JobState.QUEUED: "queued", JobState.RUNNING: "in_progress"}
_ENDED = {
    JobState.SUCCEEDED: "completed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "failed",
    JobState.FAILED: "failed",
}
RATE_LIMITED = 429


def open_object(response: StoredResponse, job_id: JobId, created_ms: int, status: str) -> JsonObject:
    """Before the end. It names the model that was asked for, since another one may still take its place."""
    return _object(response, job_id, created_ms, response.model, status)


def response_object(response: StoredResponse, job: Job) -> JsonObject:
    """As its job stands now."""
    outcome = outcome_of(job)
    if outcome is not None:
        return ended_object(response, job.id, outcome)
    return open_object(response, job.id, job.created_ms, _OPEN[job.state])


def outcome_of(job: Job) -> Outcome | None:
    """How a job ended; None while it is open."""
    if not job.state.is_terminal:
        return None
    return Outcome(
        state=job.state,
        model=job.model,
        created_ms=job.created_ms,
        finished_ms=job.finished_ms or job.created_ms,
        result=job.result,
        error=job.error,
    )


def ended_object(
    response: StoredResponse, job_id: JobId, outcome: Outcome, logprobs: Sequence[TokenLogprob] = ()
) -> JsonObject:
    result = outcome.result
    end = End(
        state=outcome.state,
        finish_reason=None if result is None else result.finish_reason,
        usage=None if result is None else result.usage,
        error=outcome.error,
    )
    items: list[JsonObject] = []
    if result is not None and (result.text or is_complete(end)):
        items = whole_output(job_id, response.tools, result.text, logprobs, is_complete=is_complete(end))
    return closing_object(response, job_id, outcome, end, items)


def closing_object(
    response: StoredResponse, job_id: JobId, outcome: Outcome, end: End, items: Sequence[JsonObject]
) -> JsonObject:
    """`outcome` says when the job ended and who answered; `end` and `items` are what its stream says."""
    status = ended_status(end)
    return _object(response, job_id, outcome.created_ms, outcome.model, status) | {
        "completed_at": outcome.finished_ms // 1000 if status == "completed" else None,
        "error": _error(end) if status == "failed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": [] if status == "failed" else list(items),
        "usage": _usage(end.usage),
    }


def is_complete(end: End) -> bool:
    return end.state is JobState.SUCCEEDED and end.finish_reason != "length"


def ended_status(end: End) -> str:
    if end.state is JobState.SUCCEEDED and not is_complete(end):
        return "incomplete"
    return _ENDED[end.state]


def _object(response: StoredResponse, job_id: JobId, created_ms: int, model: str, status: str) -> JsonObject:
    return {
        "id": response_id(job_id),
        "object": "response",
        "created_at": created_ms // 1000,
        "completed_at": None,
        "status": status,
        "background": response.is_background,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "reasoning": {"effort": None, "summary": None},
        **response.echo,
    }


def _error(end: End) -> JsonObject:
    """OpenAI's codes are a closed list; ours is said beside it."""
    facts = facts_of(error_of(end))
    if facts.status == RATE_LIMITED:
        code = "rate_limit_exceeded"
    else:
        code = "invalid_prompt" if facts.status < 500 else "server_error"
    return {"code": code, "message": facts.message, "keepwarm": {"code": facts.code}}


def _usage(usage: Usage | None) -> JsonObject | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
