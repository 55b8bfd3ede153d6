"""The progress bar of a benchmark: so many steps, and what is being done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

Advance = Callable[[str], None]  # one step further; the text says what comes or was


@contextmanager
def step_bar(console: Console, steps: int, *, width: int, clock: ProgressColumn) -> Iterator[Advance]:
    """`width` is that of the text in characters; `clock` shows the time that is gone or left."""
    columns = (TextColumn(f"{{task.description:{width}}}"), BarColumn(), MofNCompleteColumn(), clock)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=steps)

        def advance(what: str) -> None:
            progress.update(task, advance=1, description=what)

        yield advance
