"""What a request handler works with: one value per application, handed out by FastAPI's dependency injection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from app.backend import Backend
from app.closing import Closing
from app.departures import Departures
from app.fleet_view import FleetView
from app.grammar_check import GrammarCheck
from app.metrics import Metrics
from app.settings import ApiSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    settings: ApiSettings
    backend: Backend
    view: FleetView
    metrics: Metrics
    grammars: GrammarCheck
    closing: Closing
    departures: Departures


async def get_front(request: Request) -> Front:
    """Async, because FastAPI calls any other dependency in a thread."""
    front: Front = request.app.state.front
    return front


FrontDep = Annotated[Front, Depends(get_front)]
