"""Commands that run Keepwarm's processes: all of them, or one in the foreground."""

from __future__ import annotations

import os
from typing import Annotated

import typer

process_cli = typer.Typer()

RUN = "Run"


def _flag(name: str, variable: str, help_text: str, metavar: str) -> object:
    return typer.Option(name, metavar=metavar, help=f"{help_text} \\[{variable}]", show_default=False)


@process_cli.command("up", rich_help_panel=RUN)
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


@process_cli.command("api", rich_help_panel=RUN)
def api_command() -> None:
    """Run one HTTP front in the foreground."""
    from app.cli.processes import API

    _become(API)


@process_cli.command("worker", rich_help_panel=RUN)
def worker_command() -> None:
    """Run one worker in the foreground."""
    from app.cli.processes import WORKER

    _become(WORKER)


@process_cli.command("controller", rich_help_panel=RUN)
def controller_command() -> None:
    """Run the controller in the foreground; several are fine, one leads."""
    from app.cli.processes import CONTROLLER

    _become(CONTROLLER)


@process_cli.command("batcher", rich_help_panel=RUN)
def batcher_command() -> None:
    """Run one process that feeds batches and delivers webhooks in the foreground."""
    from app.cli.processes import BATCHER

    _become(BATCHER)


@process_cli.command("store", rich_help_panel=RUN)
def store_command(
    repair: Annotated[bool, typer.Option("--repair", help="Cut a damaged log back to its last whole entry.")] = False,
) -> None:
    """Run the embedded store of KEEPWARM_HOME in the foreground."""
    from app.cli.processes import STORE

    _become((*STORE, "--repair") if repair else STORE)


@process_cli.command("flower", rich_help_panel=RUN)
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
