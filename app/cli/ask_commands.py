"""Commands that ask the API: for answers, about models, and for what became of webhooks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from app.cli.options import ASK, Json, Url, api_at

ask_cli = typer.Typer()

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Id or alias of a model; `keepwarm ls` shows them.")]


@ask_cli.command("run", rich_help_panel=ASK)
def run_command(
    model: Model,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to ask; standard input or a conversation without it."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is deterministic.", min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat the same random choices.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Ask a model and stream its answer; without a prompt, talk with it."""
    from app.cli.run import Wish, converse, piped_prompt, run_once

    options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    wish = Wish(
        model=model,
        system=system,
        options={name: value for name, value in options.items() if value is not None},
    )
    text = " ".join(prompt) if prompt else piped_prompt()
    if text is not None and not text.strip():
        raise typer.BadParameter("the prompt is empty", param_hint="PROMPT")
    with api_at(url) as client:
        if text is None:
            raise typer.Exit(converse(client, wish))
        raise typer.Exit(run_once(client, wish, text, as_json=as_json))


@ask_cli.command("ps", rich_help_panel=ASK)
def ps_command(
    host: Annotated[
        str | None, typer.Option("--host", help="Only workers of this host; fails when there is none.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show the warm pool: which worker holds which model."""
    from app.cli.ps import only_host, show_pool
    from app.cli.render import print_json

    with api_at(url) as client:
        pool = client.pool()
    if host is not None:
        pool = only_host(pool, host)
    print_json(pool) if as_json else show_pool(pool)
    if host is not None and not pool["workers"]:
        raise typer.Exit(1)


@ask_cli.command("ls", rich_help_panel=ASK)
def ls_command(as_json: Json = False, url: Url = None) -> None:
    """List the models that can be asked."""
    from app.cli.ls import show_models
    from app.cli.ps import show_warnings
    from app.cli.render import print_json

    with api_at(url) as client:
        models = client.models()
        if as_json:
            print_json(models)
            return
        show_models(models)
        show_warnings(client.pool())


@ask_cli.command("warm", rich_help_panel=ASK)
def warm_command(model: Model, as_json: Json = False, url: Url = None) -> None:
    """Ask the controller to load a model now."""
    from app.cli.render import print_json, say

    with api_at(url) as client:
        answer = client.warm(model)
    print_json(answer) if as_json else say(f"{answer['model']} will be loaded; `keepwarm ps` shows how far it is.")


@ask_cli.command("evict", rich_help_panel=ASK)
def evict_command(model: Model, as_json: Json = False, url: Url = None) -> None:
    """Ask the controller to unload a model; running answers go on elsewhere or later."""
    from app.cli.render import print_json, say

    with api_at(url) as client:
        answer = client.evict(model)
    print_json(answer) if as_json else say(f"{answer['model']} will be unloaded; `keepwarm ps` shows what is left.")


@ask_cli.command("why", rich_help_panel=ASK)
def why_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Id or alias, as `keepwarm ls` shows them.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Decisions to show, the newest first.")] = 20,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Say why a model is warm or not: what the controller decided about it, with the numbers."""
    from app.cli.render import print_json
    from app.cli.why import show_why

    with api_at(url) as client:
        details, decisions = client.model(model), client.decisions(model, limit)
    print_json(decisions) if as_json else show_why(details, decisions, now=datetime.now(UTC))


@ask_cli.command("webhooks", rich_help_panel=ASK)
def webhooks_command(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=1000)] = 20,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List webhooks that were given up, the newest first."""
    from app.cli.render import print_json
    from app.cli.webhooks import show_dead_webhooks

    with api_at(url) as client:
        entries = client.dead_webhooks(limit)
    print_json(entries) if as_json else show_dead_webhooks(entries, now=datetime.now(UTC))
