"""Has the kernel killed anything for want of memory? Its counters tell an out-of-memory kill from any other SIGKILL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from workers.control_groups import own_levels


def kernel_oom_kills(proc: Path = Path("/proc")) -> int:
    """A number that grows with every out-of-memory kill; 0 where the kernel does not say (macOS).

    Of the process's own control group, which counts all kills of its processes, whoever's memory was short. Only
    without one of the whole machine, where a stranger's end looks like that of one of ours."""
    for source in _sources(proc):
        with contextlib.suppress(OSError, ValueError):
            for line in source.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _sources(proc: Path) -> Iterator[Path]:
    """The nearest first: of version 2 a level counts for those below it, and one without the controller has no file."""
    for group in own_levels("memory", proc / "self"):
        yield group / "memory.oom_control"
    for group in own_levels("", proc / "self"):
        yield group / "memory.events"
    yield proc / "vmstat"
