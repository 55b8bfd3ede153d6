"""The `keepwarm` command: its groups, and how it ends. Options and help are in the modules `…_commands`, what commands
do in those beside them.

Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong setting, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from app.cli.ask_commands import ask_cli
from app.cli.batch_commands import batch_cli
from app.cli.job_commands import jobs_cli
from app.cli.options import ASK
from app.cli.process_commands import process_cli
from app.cli.quarantine_commands import quarantine_cli
from tasks.errors import InvalidSetting, KeepwarmError

cli = typer.Typer(
    name="keepwarm",
    help="A distributed task queue for LLM inference: jobs run on models that are already warm.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
cli.add_typer(process_cli)
cli.add_typer(ask_cli)
cli.add_typer(jobs_cli, name="jobs", rich_help_panel=ASK)
cli.add_typer(quarantine_cli, name="quarantine", rich_help_panel=ASK)
cli.add_typer(batch_cli, name="batch", rich_help_panel=ASK)


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


if __name__ == "__main__":
    main()
