"""Serve the HTTP front with uvicorn: `python -m app.serve`. One process; run several behind a proxy for more."""

from __future__ import annotations

import socket
import sys

import uvicorn
from fastapi import FastAPI

from app.closing import Closing
from app.connections import ConnectionLimits, connections_within_reach, protocol_class
from app.front import Front
from app.main import create_app
from app.settings import ApiSettings
from tasks.environment import warn_of_unknown_settings
from tasks.errors import InvalidSetting
from tasks.lifeline import exit_when_parent_dies
from tasks.logs import configure_logs
from tasks.settings import load_settings
from tasks.threads import hand_over_soon

GRACE_S = 5  # after SIGTERM; what is still open then is cut, and told so before (`app.closing`)


def main() -> int:
    exit_when_parent_dies()
    configure_logs()
    warn_of_unknown_settings()
    hand_over_soon()
    try:
        settings = load_settings(ApiSettings)
        app = create_app(settings)
    except InvalidSetting as error:
        print(error, file=sys.stderr)
        return 2
    server_of(app).run()
    return 0


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, closing: Closing, grace_s: float) -> None:
        super().__init__(config)
        self._closing = closing
        self._grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.begin(self._grace_s)
        await super().shutdown(sockets)


def server_of(app: FastAPI, *, grace_s: int = GRACE_S) -> Server:
    front: Front = app.state.front
    return Server(server_config(app, grace_s), front.closing, grace_s)


def server_config(app: FastAPI, grace_s: int) -> uvicorn.Config:
    """How an application made by `create_app` is served."""
    front: Front = app.state.front
    settings = front.settings
    limits = ConnectionLimits(
        max_connections=connections_within_reach(settings.max_connections),
        max_head_bytes=settings.max_head_bytes,
        grace_s=settings.request_grace_s,
        stall_s=settings.client_stall_s,
    )
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=protocol_class(limits, front.closing, front.metrics.connection_refused),
        ws="none",
        access_log=False,  # RequestFrame logs requests
        log_config=None,  # uvicorn's records take the road of ours
        server_header=False,
        proxy_headers=False,  # nobody may claim another address
        timeout_graceful_shutdown=grace_s,
    )


if __name__ == "__main__":
    sys.exit(main())
