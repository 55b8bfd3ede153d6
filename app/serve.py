"""Serve the HTTP front with uvicorn: `python -m app.serve`. One process; run several behind a proxy for more."""

from __future__ import annotations

import sys

import uvicorn

from app.main import create_app
from app.settings import ApiSettings
from tasks.errors import InvalidSetting
from tasks.lifeline import exit_when_parent_dies
from tasks.logs import configure_logs
from tasks.settings import load_settings
from tasks.threads import hand_over_soon

GRACE_S = 5  # open streams may end by themselves this long after SIGTERM


def main() -> int:
    exit_when_parent_dies()
    configure_logs()
    hand_over_soon()
    try:
        settings = load_settings(ApiSettings)
        app = create_app(settings)
    except InvalidSetting as error:
        print(error, file=sys.stderr)
        return 2
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,  # RequestFrame logs requests
        log_config=None,  # uvicorn's records take the road of ours
        server_header=False,
        proxy_headers=False,  # nobody may claim another address
        timeout_graceful_shutdown=GRACE_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
