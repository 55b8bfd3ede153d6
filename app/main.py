"""The HTTP application: `uvicorn --factory app.main:create_app`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from app.backend import Backend, connect_backend
from app.closing import Closing
from app.departures import Departures
from app.error_handlers import install_error_handlers
from app.fleet_view import FleetView
from app.front import Front
from app.grammar_check import GrammarCheck
from app.metrics import Metrics
from app.middleware import RequestFrame
from app.origin_guard import OriginGuard
from app.routes import (
    batches,
    chat,
    completions,
    docs,
    embeddings,
    files,
    health,
    index,
    jobs,
    metrics,
    models,
    pool,
    quarantine,
    rerank,
    responses,
    webhooks,
)
from app.settings import ApiSettings
from tasks.settings import StoreSettings, load_settings

DESCRIPTION = "A task queue for LLM inference: OpenAI-compatible routes, and jobs that outlive their connection."


def create_app(settings: ApiSettings | None = None, backend: Backend | None = None) -> FastAPI:
    """An application of its own. Without arguments the environment decides. Raises InvalidSetting."""
    settings = settings or load_settings(ApiSettings)
    backend = backend or connect_backend(load_settings(StoreSettings))

    grammars, departures = GrammarCheck(), Departures()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await backend.streams.start()
        try:
            yield
        finally:
            await departures.close()
            await backend.streams.close()
            await grammars.close()

    app = FastAPI(
        title="Keepwarm",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; ours is in `app.routes.docs`
        redoc_url=None,
    )
    app.state.front = Front(
        settings=settings,
        backend=backend,
        view=FleetView(backend.fleet, backend.quarantine, max_age_s=settings.fleet_cache_ms / 1000),
        metrics=Metrics(),
        grammars=grammars,
        closing=Closing(),
        departures=departures,
    )
    app.add_middleware(OriginGuard, settings=settings)  # the last one added is the outermost
    app.add_middleware(
        RequestFrame,
        max_body_bytes=settings.max_body_bytes,
        larger_bodies={files.UPLOAD_PATH: settings.max_file_bytes + files.UPLOAD_SLACK_BYTES},
        metrics=app.state.front.metrics,
    )
    install_error_handlers(app)
    openai = (chat, responses, completions, embeddings, rerank, models, files, batches)
    for routes in (*openai, jobs, webhooks, pool, quarantine, health, metrics, index, docs):
        app.include_router(routes.router)
    app.mount("/static", StaticFiles(directory=index.STATIC), name="static")
    return app
