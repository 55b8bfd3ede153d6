"""How the command line shows things: rich on a terminal, plain text in a pipe, JSON on request."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tasks.forgiving_file import ForgivingFile

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STATE_STYLES = {
    "warm": "green",
    "ready": "green",
    "succeeded": "green",
    "loading": "yellow",
    "starting": "yellow",
    "queued": "yellow",
    "running": "cyan",
    "draining": "magenta",
    "failed": "red",
    "crashed": "red",
    "expired": "red",
}


def without_control(text: str) -> str:
    """A model's text must not steer the terminal: no control character but newline and tab."""
    return _CONTROL.sub("", text)


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; in a pipe the same in aligned columns, never cut."""
    cells = [[without_control(cell) for cell in row] for row in rows]
    if out.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in row))
        out.print(table)
        return
    widths = [max(len(line[index]) for line in [columns, *cells]) for index in range(len(columns))]
    for line in [columns, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def say(text: str, *, style: str = "") -> None:
    """A line for a person, on standard output."""
    out.print(escape(text), style=style)


def complain(text: str) -> None:
    """A line about what went wrong, on standard error."""
    err.print(escape(without_control(text)), style="red")


def remark(text: str) -> None:
    """A line aside, on standard error."""
    err.print(escape(without_control(text)), style="dim")


def write_text(text: str) -> None:
    """Streamed text as it comes; untouched in a pipe."""
    out.file.write(without_control(text) if out.is_terminal else text)
    out.file.flush()


def forgive_lost_output() -> None:
    """From now on, words that can't be written are lost: the terminal was closed, the reader is gone, the disk is full.

    For a process that keeps others alive. It lasts until the process ends, so that its exit code, too, is about them.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is not None:
            setattr(sys, name, ForgivingFile(getattr(sys, name)))


def bytes_text(count: int) -> str:
    """`1.5 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration_text(seconds: float) -> str:
    """`850 ms`, `12 s`, `3 min`, `2 h`, `4 d`: one figure is enough."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    for limit_s, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
