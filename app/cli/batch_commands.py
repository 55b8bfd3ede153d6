"""The options of `keepwarm batch`. What the commands do is in `batch.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import Json, Url, api_at

if TYPE_CHECKING:
    from app.cli.client import ApiClient

batch_cli = typer.Typer(help="Have a file of requests answered whenever there is room.", no_args_is_help=True)

BatchId = Annotated[str, typer.Argument(metavar="ID")]


@batch_cli.command("submit")
def submit_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Requests as .jsonl, or prompts: .txt with one per line, .csv with a column 'prompt'.",
        ),
    ],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Who answers prompts; id or alias.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message of prompts.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of prompts; 0 is deterministic.", min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer to a prompt.", min=1)] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the progress until the batch has ended.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Upload a file and have its requests answered."""
    from app.cli.batch import submit
    from app.cli.batch_input import Wish
    from app.cli.render import print_json, say

    options = {"temperature": temperature, "max_tokens": max_tokens}
    given = {name: value for name, value in options.items() if value is not None}
    with api_at(url) as client:
        batch = submit(client, file, Wish(model=model, system=system, options=given))
        if wait:
            if not as_json:
                say(batch["id"])
            _watch(client, batch["id"], as_json)
    print_json(batch) if as_json else say(f"{batch['id']} is taken in; `keepwarm batch watch` shows how far it is.")


@batch_cli.command("watch")
def watch_command(batch_id: BatchId, as_json: Json = False, url: Url = None) -> None:
    """Show the progress until the batch has ended; exit code 1 unless it is completed."""
    with api_at(url) as client:
        _watch(client, batch_id, as_json)


@batch_cli.command("get")
def get_command(
    batch_id: BatchId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the answers here; - prints.")] = None,
    errors: Annotated[Path | None, typer.Option("--errors", "-e", help="Save the errors here; - prints.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show a batch, or save what came out of it."""
    from app.cli.batch import fetch, show_batch
    from app.cli.render import print_json

    with api_at(url) as client:
        batch = client.batch(batch_id)
        fetch(client, batch, output=output, errors=errors)
    if as_json:
        print_json(batch)
    elif output is None and errors is None:
        show_batch(batch)


@batch_cli.command("cancel")
def cancel_command(batch_id: BatchId, as_json: Json = False, url: Url = None) -> None:
    """Stop a batch; what was answered stays."""
    from app.cli.render import print_json, say

    with api_at(url) as client:
        batch = client.cancel_batch(batch_id)
    print_json(batch) if as_json else say(f"{batch['id']} is {batch['status']}.")


@batch_cli.command("ls")
def ls_command(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=100)] = 20,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List batches, newest first."""
    from app.cli.batch import show_batches
    from app.cli.render import print_json

    with api_at(url) as client:
        batches = client.batches(limit)
    print_json(batches) if as_json else show_batches(batches, now=datetime.now(UTC))


def _watch(client: ApiClient, batch_id: str, as_json: bool) -> None:
    from app.cli.batch import show_batch, watch
    from app.cli.render import print_json

    batch = watch(client, batch_id, is_quiet=as_json)
    print_json(batch) if as_json else show_batch(batch)
    raise typer.Exit(0 if batch["status"] == "completed" else 1)
