"""The `keepwarm` command: options and help. What the commands do is in the modules beside this one.

Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong setting, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.batch_commands import batch_commands
from app.cli.options import Json, Url
from tasks.errors import InvalidSetting, KeepwarmError

if TYPE_CHECKING:
    from app.cli.client import ApiClient

cli = typer.Typer(
    name="keepwarm",
    help="A distributed task queue for LLM inference: jobs run on models that are already warm.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
jobs_cli = typer.Typer(help="List, show, cancel and requeue jobs.", invoke_without_command=True)
cli.add_typer(jobs_cli, name="jobs", rich_help_panel="Ask")

quarantine_cli = typer.Typer(
    help="Prompts and models that are kept away because they kill what serves them.", no_args_is_help=True
)
cli.add_typer(quarantine_cli, name="quarantine", rich_help_panel="Ask")

ASK, RUN = "Ask", "Run"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Id or alias of a model; `keepwarm ls` shows them.")]


def main() -> None:
    """Entry point of the `keepwarm` script."""
    try:
        cli()
    except KeepwarmError as error:
        from app.cli.render import complain

        complain(str(error))
        sys.exit(2 if isinstance(error, InvalidSetting) else 1)
    except BrokenPipeError:  # the reader of our output is gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        try:
            typer.echo(f"keepwarm {version('keepwarm')}")
        except PackageNotFoundError:
            typer.echo("keepwarm (not installed)")
        raise typer.Exit


@cli.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


# ---- run processes


def _flag(name: str, variable: str, help_text: str, metavar: str) -> object:
    return typer.Option(name, metavar=metavar, help=f"{help_text} \\[{variable}]", show_default=False)


@cli.command("up", rich_help_panel=RUN)
def up_command(
    home: Annotated[
        str | None, _flag("--home", "KEEPWARM_HOME", "Folder for state and logs; ~/.keepwarm.", "PATH")
    ] = None,
    host: Annotated[str | None, _flag("--host", "KEEPWARM_HOST", "Address to listen on; 127.0.0.1.", "ADDRESS")] = None,
    port: Annotated[str | None, _flag("--port", "KEEPWARM_PORT", "Port of the API; 8000.", "PORT")] = None,
    flower_port: Annotated[
        str | None, _flag("--flower-port", "KEEPWARM_FLOWER_PORT", "Port of Flower; 5555, 0 = off.", "PORT")
    ] = None,
    redis_url: Annotated[
        str | None,
        _flag("--redis-url", "KEEPWARM_REDIS_URL", "A Redis or Valkey server instead of the embedded one.", "URL"),
    ] = None,
    models_dir: Annotated[
        str | None, _flag("--models-dir", "KEEPWARM_MODELS_DIR", "Folder with .gguf files.", "PATH")
    ] = None,
    memory_budget: Annotated[
        str | None,
        _flag("--memory-budget", "KEEPWARM_MEMORY_BUDGET", "Bytes for models, per worker, like 8GiB.", "BYTES"),
    ] = None,
    slots: Annotated[
        str | None, _flag("--slots", "KEEPWARM_SLOTS", "Sequences that one model runs at once.", "COUNT")
    ] = None,
    threads: Annotated[str | None, _flag("--threads", "KEEPWARM_THREADS", "CPU threads of one model.", "COUNT")] = None,
    workers: Annotated[
        str | None, _flag("--workers", "KEEPWARM_WORKERS", "Workers; one, or one per GPU.", "COUNT")
    ] = None,
    demo: Annotated[bool, typer.Option(help="Stream a first answer to show that it works.")] = True,
) -> None:
    """Start everything on this machine and keep it running until Ctrl-C.

    Each flag is also a KEEPWARM_* variable, shown in brackets; the flag wins.
    """
    flags = {
        "KEEPWARM_HOME": home,
        "KEEPWARM_HOST": host,
        "KEEPWARM_PORT": port,
        "KEEPWARM_FLOWER_PORT": flower_port,
        "KEEPWARM_REDIS_URL": redis_url,
        "KEEPWARM_MODELS_DIR": models_dir,
        "KEEPWARM_MEMORY_BUDGET": memory_budget,
        "KEEPWARM_SLOTS": slots,
        "KEEPWARM_THREADS": threads,
        "KEEPWARM_WORKERS": workers,
    }
    from app.cli.up import up

    variables = {name: value for name, value in flags.items() if value is not None}
    raise typer.Exit(up(variables, with_first_answer=demo))


@cli.command("api", rich_help_panel=RUN)
def api_command() -> None:
    """Run one HTTP front in the foreground."""
    from app.cli.processes import API

    _become(API)


@cli.command("worker", rich_help_panel=RUN)
def worker_command() -> None:
    """Run one worker in the foreground."""
    from app.cli.processes import WORKER

    _become(WORKER)


@cli.command("controller", rich_help_panel=RUN)
def controller_command() -> None:
    """Run the controller in the foreground; several are fine, one leads."""
    from app.cli.processes import CONTROLLER

    _become(CONTROLLER)


@cli.command("batcher", rich_help_panel=RUN)
def batcher_command() -> None:
    """Run one process that feeds batches and delivers webhooks in the foreground."""
    from app.cli.processes import BATCHER

    _become(BATCHER)


@cli.command("store", rich_help_panel=RUN)
def store_command(
    repair: Annotated[bool, typer.Option("--repair", help="Cut a damaged log back to its last whole entry.")] = False,
) -> None:
    """Run the embedded store of KEEPWARM_HOME in the foreground."""
    from app.cli.processes import STORE

    _become((*STORE, "--repair") if repair else STORE)


@cli.command("flower", rich_help_panel=RUN)
def flower_command() -> None:
    """Run Flower, Celery's dashboard, in the foreground."""
    from app.cli.processes import flower_argv, flower_env, with_lifeline
    from app.cli.settings import UpSettings, refuse_open_flower, remark_unknown
    from app.settings import ApiSettings
    from tasks.settings import load_settings

    api, up = load_settings(ApiSettings), load_settings(UpSettings)
    remark_unknown(os.environ)
    refuse_open_flower(up, api)
    os.environ.update(flower_env(up.flower_basic_auth))
    _become(with_lifeline(flower_argv(host=api.host, port=up.flower_port)))


def _become(argv: tuple[str, ...]) -> None:
    from app.cli.processes import CHILD_ENV

    os.execve(argv[0], argv, {**os.environ, **CHILD_ENV})


# ---- ask the API


@cli.command("run", rich_help_panel=ASK)
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
    with _client(url) as client:
        if text is None:
            raise typer.Exit(converse(client, wish))
        raise typer.Exit(run_once(client, wish, text, as_json=as_json))


@cli.command("ps", rich_help_panel=ASK)
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

    with _client(url) as client:
        pool = client.pool()
    if host is not None:
        pool = only_host(pool, host)
    print_json(pool) if as_json else show_pool(pool)
    if host is not None and not pool["workers"]:
        raise typer.Exit(1)


@cli.command("ls", rich_help_panel=ASK)
def ls_command(as_json: Json = False, url: Url = None) -> None:
    """List the models that can be asked."""
    from app.cli.ls import show_models
    from app.cli.ps import show_warnings
    from app.cli.render import print_json

    with _client(url) as client:
        models = client.models()
        if as_json:
            print_json(models)
            return
        show_models(models)
        show_warnings(client.pool())


@cli.command("warm", rich_help_panel=ASK)
def warm_command(model: Model, as_json: Json = False, url: Url = None) -> None:
    """Ask the controller to load a model now."""
    from app.cli.render import print_json, say

    with _client(url) as client:
        answer = client.warm(model)
    print_json(answer) if as_json else say(f"{answer['model']} will be loaded; `keepwarm ps` shows how far it is.")


@cli.command("evict", rich_help_panel=ASK)
def evict_command(model: Model, as_json: Json = False, url: Url = None) -> None:
    """Ask the controller to unload a model; running answers go on elsewhere or later."""
    from app.cli.render import print_json, say

    with _client(url) as client:
        answer = client.evict(model)
    print_json(answer) if as_json else say(f"{answer['model']} will be unloaded; `keepwarm ps` shows what is left.")


@jobs_cli.callback()
def jobs_command(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, cancelled or expired.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Only jobs of this batch.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only jobs with this pair of metadata; may be repeated."),
    ] = None,
    dead: Annotated[
        bool, typer.Option("--dead", help="Only dead letters: failed jobs whose request is not to blame.")
    ] = False,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 20,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List, show, cancel and requeue jobs; newest first."""
    from app.cli.jobs import metadata_pairs, show_dead_letters, show_jobs
    from app.cli.render import print_json

    if context.invoked_subcommand is not None:
        return
    with _client(url) as client:
        pairs = metadata_pairs(metadata or [])
        jobs = client.jobs(state=state, model=model, batch_id=batch, metadata=pairs, dead=dead, limit=limit)
    show = show_dead_letters if dead else show_jobs
    print_json(jobs) if as_json else show(jobs, now=datetime.now(UTC))


@jobs_cli.command("show")
def show_command(job_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False, url: Url = None) -> None:
    """Show one job with its answer or its error."""
    from app.cli.jobs import show_job
    from app.cli.render import print_json

    with _client(url) as client:
        job = client.job(job_id)
    print_json(job) if as_json else show_job(job, now=datetime.now(UTC))


@jobs_cli.command("cancel")
def cancel_command(
    job_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False, url: Url = None
) -> None:
    """Cancel a job in any state."""
    from app.cli.render import print_json, say

    with _client(url) as client:
        job = client.cancel(job_id)
    print_json(job) if as_json else say(f"{job['id']} is {_after_cancel(job['state'])}.")


@jobs_cli.command("requeue")
def requeue_command(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", show_default=False)] = None,
    all_dead: Annotated[bool, typer.Option("--all-dead", help="Every dead letter, the oldest first.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Ask once more what a failed, cancelled or expired job asked. The answer is a new job."""
    from app.cli.jobs import requeue_each, show_requeued
    from app.cli.render import print_json

    if (job_id is None) != all_dead:
        raise typer.BadParameter("give an ID, or --all-dead", param_hint="ID")
    with _client(url) as client:
        if job_id is not None:
            requeued, num_refused = [client.requeue(job_id)], 0
        else:
            dead = client.jobs(dead=True, limit=1000)
            requeued, num_refused = requeue_each(client, [job["id"] for job in reversed(dead)])
            if not dead and not as_json:
                from app.cli.render import say

                say("No dead letters.")
    print_json(requeued if all_dead else requeued[0]) if as_json else show_requeued(requeued)
    if num_refused:
        raise typer.Exit(1)


@cli.command("why", rich_help_panel="Ask")
def why_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Id or alias, as `keepwarm ls` shows them.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Decisions to show, the newest first.")] = 20,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Say why a model is warm or not: what the controller decided about it, with the numbers."""
    from app.cli.render import print_json
    from app.cli.why import show_why

    with _client(url) as client:
        details, decisions = client.model(model), client.decisions(model, limit)
    print_json(decisions) if as_json else show_why(details, decisions, now=datetime.now(UTC))


@cli.command("webhooks", rich_help_panel=ASK)
def webhooks_command(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=1000)] = 20,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List webhooks that were given up, the newest first."""
    from app.cli.render import print_json
    from app.cli.webhooks import show_dead_webhooks

    with _client(url) as client:
        entries = client.dead_webhooks(limit)
    print_json(entries) if as_json else show_dead_webhooks(entries, now=datetime.now(UTC))


@quarantine_cli.command("ls")
def quarantine_ls_command(as_json: Json = False, url: Url = None) -> None:
    """List what is in quarantine."""
    from app.cli.quarantine import show_quarantine
    from app.cli.render import print_json

    with _client(url) as client:
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

    with _client(url) as client:
        entry = client.lift(suspect_id)
    print_json(entry) if as_json else show_lifted(entry)


def _after_cancel(state: str) -> str:
    return "being cancelled" if state in {"queued", "running"} else state


def _client(url: str | None) -> ApiClient:
    from app.cli.client import ApiClient

    return ApiClient(url or default_url(dict(os.environ)))


def default_url(environment: dict[str, str]) -> str:
    return f"http://127.0.0.1:{environment.get('KEEPWARM_PORT') or 8000}"


cli.add_typer(batch_commands(lambda url: _client(url)), name="batch", rich_help_panel=ASK)

if __name__ == "__main__":
    main()
