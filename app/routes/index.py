"""The page at `/`: where everything is, and what the pool holds right now. No inline script, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from app.front import FrontDep

router = APIRouter(include_in_schema=False)

STATIC = Path(__file__).resolve().parent.parent / "static"
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@router.head("/")
@router.get("/")
async def index(front: FrontDep) -> HTMLResponse:
    page = (STATIC / "index.html").read_text()
    return HTMLResponse(page.replace("{flower_port}", str(front.settings.flower_port)), headers=_HEADERS)
