"""The page at `/docs`: Swagger UI over our OpenAPI document, from an installed package, so that it works offline.

The package `fastapi-swagger` carries Swagger UI's files as a wheel; only those are used.
"""

from __future__ import annotations

from importlib import resources
from typing import Literal

from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from app.routes.index import STATIC

router = APIRouter(include_in_schema=False)

_HEADERS = {  # Swagger UI styles elements as it goes
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_MEDIA_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}


@router.get("/docs")
async def docs() -> HTMLResponse:
    return HTMLResponse((STATIC / "docs.html").read_text(), headers=_HEADERS)


@router.get("/static/swagger-ui/{name}")
async def swagger_ui(name: Literal["swagger-ui-bundle.js", "swagger-ui.css"]) -> Response:
    file = resources.files("fastapi_swagger").joinpath("resources", name)
    content = await to_thread.run_sync(file.read_bytes)
    headers = {"cache-control": "max-age=86400", "x-content-type-options": "nosniff"}
    return Response(content, 200, headers, _MEDIA_TYPES[name])
