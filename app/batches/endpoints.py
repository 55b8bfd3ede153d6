"""Which routes of a front a batch may name."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.routing import Match
from starlette.types import Scope

from tasks.batches import ENDPOINTS


def endpoints_of(app: FastAPI) -> tuple[str, ...]:
    """Those of OpenAI's list that this front has."""
    return tuple(endpoint for endpoint in ENDPOINTS if _has_route(app, endpoint))


def _has_route(app: FastAPI, path: str) -> bool:
    scope: Scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)
