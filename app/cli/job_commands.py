"""The options of `keepwarm jobs`. What the commands show is in `jobs.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from app.cli.options import Json, Url, api_at

jobs_cli = typer.Typer(help="List, show, cancel and requeue jobs.", invoke_without_command=True)

JobId = Annotated[str, typer.Argument(metavar="ID")]


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
    with api_at(url) as client:
        pairs = metadata_pairs(metadata or [])
        jobs = client.jobs(state=state, model=model, batch_id=batch, metadata=pairs, dead=dead, limit=limit)
    show = show_dead_letters if dead else show_jobs
    print_json(jobs) if as_json else show(jobs, now=datetime.now(UTC))


@jobs_cli.command("show")
def show_command(job_id: JobId, as_json: Json = False, url: Url = None) -> None:
    """Show one job with its answer or its error."""
    from app.cli.jobs import show_job
    from app.cli.render import print_json

    with api_at(url) as client:
        job = client.job(job_id)
    print_json(job) if as_json else show_job(job, now=datetime.now(UTC))


@jobs_cli.command("cancel")
def cancel_command(job_id: JobId, as_json: Json = False, url: Url = None) -> None:
    """Cancel a job in any state."""
    from app.cli.render import print_json, say

    with api_at(url) as client:
        job = client.cancel(job_id)
    print_json(job) if as_json else say(f"{job['id']} is {_after_cancel(job['state'])}.")


@jobs_cli.command("requeue")
def requeue_command(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", show_default=False)] = None,
    all_dead: Annotated[
        bool, typer.Option("--all-dead", help="The newest 1000 dead letters, the oldest first.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Ask once more what a failed, cancelled or expired job asked. The answer is a new job."""
    from app.cli.jobs import requeue_dead, show_requeued
    from app.cli.render import print_json

    if (job_id is None) != all_dead:
        raise typer.BadParameter("give an ID, or --all-dead", param_hint="ID")
    with api_at(url) as client:
        if job_id is not None:
            requeued, num_refused = [client.requeue(job_id)], 0
        else:
            requeued, num_refused = requeue_dead(client, is_quiet=as_json)
    print_json(requeued if all_dead else requeued[0]) if as_json else show_requeued(requeued)
    if num_refused:
        raise typer.Exit(1)


def _after_cancel(state: str) -> str:
    return "being cancelled" if state in {"queued", "running"} else state
