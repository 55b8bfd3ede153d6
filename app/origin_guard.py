"""Keep web pages of other origins away from a front that trusts everyone who reaches it.

A page in the user's browser reaches loopback too, also where a container's port is published there. It can't read
answers across origins, but it can send simple requests (refused here by Sec-Fetch-Site), or bind its own name to
127.0.0.1 and pass as the same origin (refused here by the Host header). Programs other than browsers send neither and
are not affected.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.error_handlers import ErrorFacts, error_response
from app.settings import ApiSettings, is_loopback

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class OriginGuard:
    def __init__(self, app: ASGIApp, *, settings: ApiSettings) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in settings.allowed_hosts)
        # Beyond loopback the front has names that we know only if we are told.
        self._checks_names = is_loopback(settings.host) or bool(self._names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = self._objection(scope) if scope["type"] == "http" else None
        if facts is None:
            await self._app(scope, receive, send)
        else:
            await error_response(facts, scope)(scope, receive, send)

    def _objection(self, scope: Scope) -> ErrorFacts | None:
        headers = Headers(scope=scope)
        name = host_name(headers.get("host", ""))
        if self._checks_names and name and not is_loopback(name) and name not in self._names:
            message = f"This front answers to localhost, not to {name!r}; KEEPWARM_ALLOWED_HOSTS adds names."
            return ErrorFacts(status=421, code="misdirected_request", message=message)
        if scope["method"] not in _SAFE_METHODS and headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
            return ErrorFacts(status=403, code="forbidden", message="Web pages of other origins may not send this.")
        return None


def host_name(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
