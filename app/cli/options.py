"""What several commands have: options, and the way to the API."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.cli.client import ApiClient

ASK = "Ask"  # their panel in the help

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="KEEPWARM_URL",
        help="Where the API is; http://127.0.0.1:$KEEPWARM_PORT by default.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def api_at(url: str | None) -> ApiClient:
    """Where `Url` says. Imported late, as all that commands do: help and a start of a process need no HTTP client."""
    from app.cli.client import ApiClient

    return ApiClient(url or default_url(os.environ))


def default_url(environment: Mapping[str, str]) -> str:
    return f"http://127.0.0.1:{environment.get('KEEPWARM_PORT') or 8000}"
