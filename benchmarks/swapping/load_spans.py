"""When Keepwarm loaded what, by its worker's log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from benchmarks.swapping.report import LoadSpan

_FINISHED = re.compile(r"^(\S+Z) \[info\s*\] load_finished (.*)$")
_FIELD = re.compile(r"(\w+)=(\S+)")


def load_spans(lines: Iterable[str], began_at_s: float) -> list[LoadSpan]:
    """`began_at_s`: the schedule's start, in seconds since 1970."""
    spans = []
    for line in lines:
        if found := _FINISHED.match(line):
            fields = dict(_FIELD.findall(found[2]))
            end_s = datetime.fromisoformat(found[1]).timestamp() - began_at_s
            spans.append(LoadSpan(model=fields["model"], begin_s=end_s - int(fields["load_ms"]) / 1000, end_s=end_s))
    return spans
