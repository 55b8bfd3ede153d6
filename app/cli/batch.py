"""`keepwarm batch`: hand a file of requests in, see how far it is, fetch what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from app.cli.batch_input import Wish, batch_file
from app.cli.batch_progress import Pace, num_done
from app.cli.client import GIVE_UP_AFTER_S, ApiClient, ApiRefused, ApiUnreachable, ClientError
from app.cli.render import duration_text, out, print_table, remark, say, without_control
from tasks.batches import BatchState
from tasks.generation import JsonObject

POLL_S = 1.0
PLAIN_EVERY_S = 10.0  # between two lines of progress in a pipe
MAX_ERRORS_SHOWN = 20


class CannotSave(ClientError):
    """The place for a batch's output can't be written."""

    code = "cannot_save"


def submit(client: ApiClient, path: Path, wish: Wish) -> JsonObject:
    """Upload and create. Raises BadInput, ApiRefused, ApiUnreachable."""
    with batch_file(path, wish) as (requests, endpoint):
        file = client.upload(requests, purpose="batch", filename=f"{path.stem}.jsonl")
    try:
        return client.create_batch(file["id"], endpoint)
    except ApiRefused:
        client.delete_file(file["id"])
        raise


def watch(
    client: ApiClient,
    batch_id: str,
    *,
    is_quiet: bool,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> JsonObject:
    """The batch once it has ended; until then its progress is shown. An API that is away is waited for."""
    shown = _Quiet() if is_quiet else _Bar() if out.is_terminal else _PlainLines(clock)
    pace, answered_at = Pace(), clock()
    with shown:
        while True:
            try:
                batch = client.batch(batch_id)
                answered_at = clock()
            except (ApiUnreachable, ApiRefused) as error:
                if isinstance(error, ApiRefused) and error.status < 500:
                    raise
                if clock() - answered_at > GIVE_UP_AFTER_S:
                    raise
            else:
                pace.saw(batch, clock())
                shown.show(batch, pace)
                if BatchState(batch["status"]).is_terminal:
                    return batch
            sleep(POLL_S)


def show_batch(batch: JsonObject) -> None:
    """One batch, with what is wrong with its input."""
    counts, usage = batch["request_counts"], batch["usage"]
    facts = {
        "batch": batch["id"],
        "state": batch["status"],
        "endpoint": batch["endpoint"],
        "model": batch["model"] or "",
        "lines": f"{counts['completed']} done, {counts['failed']} failed, {counts['total']} in all",
        "tokens": f"{usage['input_tokens']} in, {usage['output_tokens']} out",
        "age": _age(batch["created_at"], datetime.now(UTC)),
        "input": batch["input_file_id"],
        "output": batch["output_file_id"] or "",
        "errors": batch["error_file_id"] or "",
    }
    for name, value in facts.items():
        if value:
            say(f"{name:<8}  {without_control(value)}")
    for error in (batch["errors"] or {"data": []})["data"][:MAX_ERRORS_SHOWN]:
        where = "" if error["line"] is None else f"line {error['line']}: "
        say(without_control(f"  {where}{error['message']}"))


def show_batches(batches: list[JsonObject], *, now: datetime) -> None:
    if not batches:
        say("No batches.")
        return
    print_table(
        ["BATCH", "STATE", "DONE", "FAILED", "LINES", "MODEL", "AGE"],
        [
            [
                batch["id"],
                batch["status"],
                str(batch["request_counts"]["completed"]),
                str(batch["request_counts"]["failed"]),
                str(batch["request_counts"]["total"]),
                batch["model"] or "",
                _age(batch["created_at"], now),
            ]
            for batch in batches
        ],
    )


def fetch(client: ApiClient, batch: JsonObject, *, output: Path | None, errors: Path | None) -> None:
    """Save the files of an ended batch; `-` is standard output. Raises CannotSave, ApiRefused, ApiUnreachable."""
    for path, name, what in ((output, "output_file_id", "output"), (errors, "error_file_id", "errors")):
        if path is None:
            continue
        file_id = batch[name]
        if file_id is None:
            remark(f"The batch is {batch['status']} and has no {what}.")
        elif str(path) == "-":
            client.download(file_id, sys.stdout.buffer)
        else:
            try:
                with path.open("wb") as sink:
                    client.download(file_id, sink)
            except OSError as error:
                raise CannotSave(f"{path} can't be written: {error.strerror}.") from error


class _Quiet:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, batch: JsonObject, pace: Pace) -> None: ...


class _PlainLines(_Quiet):
    """In a pipe: a line for each new state, and one now and then."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: tuple[str, float] = ("", 0.0)

    def show(self, batch: JsonObject, pace: Pace) -> None:
        state, said_at = self._said
        if batch["status"] != state or self._clock() - said_at >= PLAIN_EVERY_S:
            self._said = (batch["status"], self._clock())
            total = batch["request_counts"]["total"]
            print(f"{batch['status']} {num_done(batch)}/{total} {_notes(batch, pace)}".rstrip(), flush=True)


class _Bar(_Quiet):
    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[state]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[notes]}")
        )
        self._task = self._progress.add_task("", total=None, state="", notes="")

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, batch: JsonObject, pace: Pace) -> None:
        self._progress.update(
            self._task,
            completed=num_done(batch),
            total=batch["request_counts"]["total"] or None,
            state=batch["status"],
            notes=_notes(batch, pace),
        )


def _notes(batch: JsonObject, pace: Pace) -> str:
    notes = []
    if batch["request_counts"]["failed"]:
        notes.append(f"{batch['request_counts']['failed']} failed")
    if batch["status"] == BatchState.IN_PROGRESS.value:
        if pace.tokens_per_s:
            notes.append(f"{pace.tokens_per_s:.0f} tokens/s")
        if (eta_s := pace.eta_s(batch)) is not None:
            notes.append(f"about {duration_text(eta_s)} left")
    return ", ".join(notes)


def _age(created_at: int, now: datetime) -> str:
    return duration_text((now - datetime.fromtimestamp(created_at, UTC)).total_seconds())
