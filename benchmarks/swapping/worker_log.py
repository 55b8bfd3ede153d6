"""When Keepwarm loaded what, and which memory it left untouched with it, by its worker's log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from workers.messages import AddressRange

_FINISHED = re.compile(r"^(\S+Z) \[info\s*\] load_finished (.*)$")
_FIELD = re.compile(r"(\w+)=(\S+)")


class LoadSpan(msgspec.Struct, frozen=True, kw_only=True):
    """One load that worked, in seconds of the schedule; it may have begun before."""

    model: str
    begin_s: float
    end_s: float


def load_spans(lines: Iterable[str], began_at_s: float) -> list[LoadSpan]:
    """`began_at_s`: the schedule's start, in seconds since 1970."""
    spans = []
    for ended, fields in _finished(lines):
        end_s = ended.timestamp() - began_at_s
        spans.append(LoadSpan(model=fields["model"], begin_s=end_s - int(fields["load_ms"]) / 1000, end_s=end_s))
    return spans


def untouched_ranges(lines: Iterable[str]) -> dict[int, list[AddressRange]]:
    """By the pid of the runner: memory that it takes when it writes to it first."""
    found = {}
    for _, fields in _finished(lines):
        ranges = [each.split("-") for each in fields.get("untouched", "").split(",") if "-" in each]
        found[int(fields["pid"])] = [(int(start, 16), int(end, 16)) for start, end in ranges]
    return found


def _finished(lines: Iterable[str]) -> Iterator[tuple[datetime, dict[str, str]]]:
    for line in lines:
        if found := _FINISHED.match(line):
            yield datetime.fromisoformat(found[1]), dict(_FIELD.findall(found[2]))
