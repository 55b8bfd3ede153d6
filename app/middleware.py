"""Around every request: an id, a bound on the body, a line in the log, and an answer when something unplanned breaks.

Plain ASGI: one extra call per sent chunk, no extra task, so that token streams stay cheap.
"""

from __future__ import annotations

import re
import secrets
import time
import traceback
from collections.abc import Mapping

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.error_handlers import INTERNAL_ERROR, error_response
from app.metrics import Metrics

_log = structlog.get_logger(__name__)
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestFrame:
    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, larger_bodies: Mapping[str, int], metrics: Metrics
    ) -> None:
        """`larger_bodies`: paths whose bodies may have another number of bytes."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._larger_bodies = larger_bodies
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        offered_id = headers.get("x-request-id", "")
        request_id = offered_id if _SAFE_ID.fullmatch(offered_id) else "req_" + secrets.token_hex(12)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            max_body_bytes = self._larger_bodies.get(scope["path"], self._max_body_bytes)
            bounded = bounded_receive(receive, headers.get("content-length"), max_body_bytes)
            await self._app(scope, bounded, send_with_id)
        except Exception:
            # Worded here, because a prettier traceback would show local variables, and those hold prompts.
            _log.error(
                "request_broke",
                request_id=request_id,
                method=scope["method"],
                route=route_of(scope),
                exception=traceback.format_exc(),
            )
            if status:
                raise  # too late for a status: the server cuts the connection
            await error_response(INTERNAL_ERROR, scope)(scope, receive, send_with_id)
        finally:
            took_s = time.perf_counter() - began
            route = route_of(scope)
            self._metrics.request_done(scope["method"], route, status, took_s)
            _log.info(
                "request",
                request_id=request_id,
                method=scope["method"],
                route=route,
                status=status,
                duration_ms=round(took_s * 1000, 1),
            )


def bounded_receive(receive: Receive, content_length: str | None, max_body_bytes: int) -> Receive:
    """`receive` that refuses a body over the limit: by its announced length, else while it comes in."""
    too_large = HTTPException(413, f"The body is larger than {max_body_bytes} bytes.", {"connection": "close"})
    is_announced = content_length is not None and content_length.isdigit() and int(content_length) > max_body_bytes
    received = 0

    async def bounded() -> Message:
        nonlocal received
        if is_announced:
            raise too_large
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_body_bytes:
            raise too_large
        return message

    return bounded


def route_of(scope: Scope) -> str:
    """The template of the matched route, so that ids don't end up in metrics."""
    return getattr(scope.get("route"), "path", None) or "unmatched"
