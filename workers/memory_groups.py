"""What the control groups of this process leave it of main memory. Linux; version 2 and version 1 (cgroups(7)).

A limit binds all groups below its own, so each level from the process's group up to the root of what is mounted counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.control_groups import own_levels

UNLIMITED_BYTES = 2**60  # version 1 words "no limit" as a number beyond any memory


@dataclass(frozen=True, slots=True)
class _Version:
    """Names of files, and of lines in memory.stat."""

    limits: tuple[str, ...]
    usage: str
    idle_files: str  # pages of files that nobody has used lately
    used_files: str


_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
# Beyond `high` the kernel slows processes down until they are below it again: nothing can live there.
_V2 = _Version(("memory.max", "memory.high"), "memory.current", "inactive_file", "active_file")


def limit_bytes(proc: Path = Path("/proc")) -> int | None:
    """The smallest limit of all levels; None without any."""
    return min((limit for _, _, limit in _limited(proc)), default=None)


def available_bytes(proc: Path = Path("/proc")) -> int | None:
    """What processes can get of the tightest level. All pages of files count as left, since the kernel drops them for
    whoever needs memory, as in MemAvailable of the whole machine (proc_meminfo(5)). None without any limit."""
    return _least_left(proc, drops_used_files=True)


def idle_bytes(proc: Path = Path("/proc")) -> int | None:
    """What nobody has used lately of the tightest level: what is free, and the pages of files that the kernel drops
    first. None without any limit."""
    return _least_left(proc, drops_used_files=False)


def _least_left(proc: Path, *, drops_used_files: bool) -> int | None:
    return min(
        (max(0, limit - _held(group, version, drops_used_files)) for group, version, limit in _limited(proc)),
        default=None,
    )


def _limited(proc: Path) -> Iterator[tuple[Path, _Version, int]]:
    """Every level that has a limit, with the smaller one if it has two."""
    for group, version in _levels(proc):
        limits = [_number(group / name) for name in version.limits]
        found = [limit for limit in limits if limit is not None and limit < UNLIMITED_BYTES]
        if found:
            yield group, version, min(found)


def _held(group: Path, version: _Version, drops_used_files: bool) -> int:
    droppable = {version.idle_files, version.used_files} if drops_used_files else {version.idle_files}
    dropped = 0
    with contextlib.suppress(OSError, ValueError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in droppable:
                dropped += int(value)
    return max(0, (_number(group / version.usage) or 0) - dropped)


def _levels(proc: Path) -> Iterator[tuple[Path, _Version]]:
    """Folders from the process's own group up. Where both versions are mounted, each process is in a group of both."""
    for controller, version in (("memory", _V1), ("", _V2)):
        for level in own_levels(controller, proc / "self"):
            yield level, version


def _number(path: Path) -> int | None:
    """None for a file that is not there, and for `max`."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None
