"""Where the control groups of a process lie in the file system. Linux; version 2 and version 1 (cgroups(7))."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class OwnGroup:
    """The group that a process is in."""

    point: Path  # where its hierarchy is mounted; inside a container usually the container's own group
    below: PurePosixPath  # relative to that

    @property
    def path(self) -> Path:
        return self.point / self.below

    def levels(self) -> Iterator[Path]:
        """From the group itself up to the root of what is mounted."""
        for level in (self.below, *self.below.parents):
            yield self.point / level


def own_group(controller: str, process: Path) -> OwnGroup | None:
    """Of a controller of version 1, or with "" of version 2; None when the process is in no such group.

    `process` is its folder below /proc. Raises OSError on a system without control groups."""
    groups = [line.split(":", 2) for line in _text(process / "cgroup").splitlines()]
    mounts = [line.split() for line in _text(process / "mountinfo").splitlines()]
    for path in (group[2] for group in groups if len(group) == 3 and controller in group[1].split(",")):
        for root, point in _mounted(mounts, controller):
            return OwnGroup(Path(point), _below(PurePosixPath(path), PurePosixPath(root)))
    return None


def own_levels(controller: str, process: Path) -> Iterator[Path]:
    """Folders of `own_group`, from the group itself up; none where there is no such group."""
    with contextlib.suppress(OSError):
        group = own_group(controller, process)
        yield from group.levels() if group is not None else ()


def _text(path: Path) -> str:
    """Names of folders are bytes of any kind."""
    return path.read_text("utf-8", "surrogateescape")


def _mounted(mounts: list[list[str]], controller: str) -> Iterator[tuple[str, str]]:
    """Roots and mount points of such hierarchies; see proc_pid_mountinfo(5) for the columns."""
    kind = "cgroup" if controller else "cgroup2"
    for columns in mounts:
        with contextlib.suppress(ValueError, IndexError):
            end = columns.index("-")
            if columns[end + 1] == kind and (not controller or controller in columns[end + 3].split(",")):
                yield columns[3], columns[4]


def _below(path: PurePosixPath, root: PurePosixPath) -> PurePosixPath:
    """The group, relative to the mount point. A group outside of what is mounted has nothing but the point itself."""
    try:
        return path.relative_to(root)
    except ValueError:
        return PurePosixPath()
