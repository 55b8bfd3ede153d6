"""Errors as HTTP answers: the table of statuses, OpenAI's shape on compatible routes, RFC 9457 on native ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.errors import AnswerTookTooLong, FormatNotTried, JobEnded, ServerShuttingDown, StreamReset
from app.rate_limits import rate_limit_headers, retry_headers
from app.schemas.own_fields import UNKNOWN_FIELD
from tasks import errors
from tasks.errors import KeepwarmError
from tasks.forecast import QueueRoom
from tasks.jobs import JobState

# The nearest class in an error's ancestry decides. A failed job's error is known by its `code` alone.
STATUS: dict[type[KeepwarmError], int] = {
    errors.InvalidRequest: 400,
    errors.IdempotencyMismatch: 422,
    errors.JobNotRepeatable: 409,
    errors.PromptQuarantined: 422,
    errors.BatchNotCancellable: 409,
    errors.FileInUse: 409,
    errors.FileTooLarge: 413,
    errors.DeadlineCannotBeMet: 422,
    errors.InvalidSetting: 500,  # ours, never the client's
    errors.NotFound: 404,
    errors.CapacityError: 503,
    errors.QueueFull: 429,
    errors.FilesFull: 413,
    errors.TooManyBatches: 429,
    errors.TooManyWebhooks: 429,
    errors.StoreUnavailable: 503,
    errors.ModelError: 503,
    errors.RunnerError: 500,
    errors.LeaseLost: 500,
    AnswerTookTooLong: 504,
    FormatNotTried: 503,
    ServerShuttingDown: 503,
    StreamReset: 500,
    KeepwarmError: 500,
}
STORE_RETRY_AFTER_S = 1
_OPENAI_STATUS: dict[type[KeepwarmError], int] = {errors.DeadlineCannotBeMet: 400}  # where OpenAI's differs
_STATUS_OF_END = {JobState.CANCELLED: 409, JobState.EXPIRED: 504}
_CODE_OF_STATUS = {
    400: "invalid_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    421: "misdirected_request",
}
_UNROUTED = {
    404: "There is nothing at {path}; /docs lists what is.",
    405: "{path} does not take {method}; the Allow header says what it takes.",
}
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_MAX_NAME_CHARS = 80  # of a field, in a message; a client's own key may be as long as its body
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFacts:
    """What both shapes are made of."""

    status: int
    code: str
    message: str
    param: str | None = None
    openai_status: int | None = None  # on OpenAI's routes, where it differs
    retry_after_s: int | None = None
    evidence: Mapping[str, object] = field(default_factory=dict)  # extra members of a problem
    room: QueueRoom | None = None  # in the line that was full
    is_repeatable: bool = False  # also after admission: the job is cancelled, or found again by its key

    @property
    def openai_type(self) -> str:
        return _OPENAI_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def openai_body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.openai_type, "param": self.param, "code": self.code}}

    def problem_body(self, instance: str) -> dict[str, object]:
        body: dict[str, object] = dict(self.evidence)
        if self.param is not None:
            body["param"] = self.param
        body |= {
            "type": f"urn:keepwarm:error:{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": self.message,
            "instance": instance,
            "code": self.code,
        }
        return body


INTERNAL_ERROR = ErrorFacts(
    status=500,
    code="internal_error",
    message="Keepwarm made a mistake. The log has the details under this reply's x-request-id.",
)


def facts_of(error: Exception) -> ErrorFacts:
    """Raises nothing; an error that nobody planned for says no more than that."""
    match error:
        case JobEnded():
            status = _STATUS_OF_END.get(error.state) or _STATUS_OF_CODE.get(error.job_code, 500)
            return ErrorFacts(status=status, code=error.job_code, message=str(error), param=error.param)
        case KeepwarmError():
            return _planned(error)
        case RequestValidationError():
            return _invalid_fields(error)
        case HTTPException():
            code = _CODE_OF_STATUS.get(error.status_code, "http_error")
            return ErrorFacts(status=error.status_code, code=code, message=str(error.detail))
        case _:
            return INTERNAL_ERROR


def speaks_openai(path: str) -> bool:
    """Whether clients of this path expect OpenAI's error shape."""
    if not path.startswith("/v1/") or path.endswith(("/warm", "/evict")):
        return False
    return path.split("/", 3)[2] not in {"jobs", "pool", "quarantine", "webhooks"}


def error_response(facts: ErrorFacts, scope: Scope) -> Response:
    """After admission (`state.job_id` is set) official SDKs are told not to retry if that would run the job twice."""
    path = scope["path"]
    headers = rate_limit_headers(facts.room) | retry_headers(facts.status, facts.retry_after_s)
    job_id = scope.get("state", {}).get("job_id")
    if job_id is not None:
        headers["x-keepwarm-job"] = job_id
        if not facts.is_repeatable:
            headers["x-should-retry"] = "false"
    if speaks_openai(path):
        facts = replace(facts, status=facts.openai_status or facts.status)
        body, media_type = facts.openai_body(), "application/json"
    else:
        body, media_type = facts.problem_body(path), "application/problem+json"
    return Response(msgspec.json.encode(body), facts.status, headers, media_type)


def install_error_handlers(app: FastAPI) -> None:
    for kind in (KeepwarmError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    facts = facts_of(error)
    if isinstance(error, HTTPException) and error.status_code in _UNROUTED:
        message = _UNROUTED[error.status_code].format(method=request.method, path=request.url.path)
        facts = replace(facts, message=message)
    response = error_response(facts, request.scope)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["allow"] = ", ".join(allowed_methods(request))
    return response


def allowed_methods(request: Request) -> list[str]:
    """What this path takes. Starlette's own list has the methods of one route only."""
    scope = {**request.scope, "method": ""}
    return [
        method
        for method in _METHODS
        if any(route.matches(scope | {"method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def _planned(error: KeepwarmError) -> ErrorFacts:
    evidence = {
        name: value
        for name, value in vars(error).items()
        if value is not None and name != "param" and not name.startswith("_")
    }
    retry_after_s: int | None = getattr(error, "retry_after_s", None)
    if isinstance(error, errors.StoreUnavailable):
        retry_after_s = STORE_RETRY_AFTER_S
    return ErrorFacts(
        status=_status_of_class(type(error)),
        code=error.code,
        message=str(error),
        param=getattr(error, "param", None) or ("model" if isinstance(error, errors.UnknownModel) else None),
        openai_status=_OPENAI_STATUS.get(type(error)),
        retry_after_s=retry_after_s,
        evidence=evidence,
        room=QueueRoom(limit=error.limit, remaining=0) if isinstance(error, errors.QueueFull) else None,
        is_repeatable=isinstance(error, ServerShuttingDown),
    )


def _invalid_fields(error: RequestValidationError) -> ErrorFacts:
    first: dict[str, Any] = error.errors()[0]
    where, *path = first["loc"]
    if first["type"] == "json_invalid":
        return ErrorFacts(
            status=400, code="invalid_json", message=f"The body is no JSON: {first['ctx']['error']} at {path[0]}."
        )
    param = ".".join(map(str, path)) if first["type"] == UNKNOWN_FIELD else field_name(path)
    if param is None:
        message = "The body must be a JSON object, sent with content-type application/json."
        return ErrorFacts(status=400, code="invalid_request", message=message)
    reason = first["msg"].removeprefix("Value error, ")
    prefix = "" if where == "body" else f"{where} "
    return ErrorFacts(status=400, code="invalid_request", message=f"{prefix}{param}: {reason}", param=param)


def field_name(path: list[str | int]) -> str | None:
    """`["messages", 0, "role"]` as `messages[0].role`; None when the body as a whole is meant."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        elif "[" not in part:  # else pydantic's name for one side of a union, which is none of the client's
            part = part if len(part) <= _MAX_NAME_CHARS else part[:_MAX_NAME_CHARS] + "…"
            name += f".{part}" if name else part
    return name or None


def _status_of_class(kind: type[KeepwarmError]) -> int:
    return next(STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS)


def _all_errors(kind: type[KeepwarmError]) -> Iterator[type[KeepwarmError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _all_errors(child)


_STATUS_OF_CODE = {kind.code: _status_of_class(kind) for kind in _all_errors(KeepwarmError)}
