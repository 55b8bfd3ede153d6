"""The options of `keepwarm quarantine`. What the commands show is in `quarantine.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from app.cli.options import Json, Url, api_at

quarantine_cli = typer.Typer(
    help="Prompts and models that are kept away because they kill what serves them.", no_args_is_help=True
)


@quarantine_cli.command("ls")
def quarantine_ls_command(as_json: Json = False, url: Url = None) -> None:
    """List what is in quarantine."""
    from app.cli.quarantine import show_quarantine
    from app.cli.render import print_json

    with api_at(url) as client:
        entries = client.quarantine()
    print_json(entries) if as_json else show_quarantine(entries, now=datetime.now(UTC))


@quarantine_cli.command("lift")
def quarantine_lift_command(
    suspect_id: Annotated[
        str, typer.Argument(metavar="ID", help="As `keepwarm quarantine ls` shows it: prompt:… or model:…")
    ],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """End a quarantine before its time."""
    from app.cli.quarantine import show_lifted
    from app.cli.render import print_json

    with api_at(url) as client:
        entry = client.lift(suspect_id)
    print_json(entry) if as_json else show_lifted(entry)
