"""A control group whose memory is limited: private memory and page cache of all processes in it, as on a machine that
has no more; and, if wanted, how fast they read from the disk. Linux; version 2 or version 1 of the controllers, and the
right to make a group below one's own."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from workers.control_groups import own_group

_CLOSE_LIMIT_S = 10.0


class NoMemoryGroup(Exception):
    """This process can't limit the memory of others; the message says what to do."""


class GroupUse(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes at one moment; and how often so far somebody waited for a page from the disk, or was killed for want of
    memory."""

    private_bytes: int
    cached_bytes: int  # of files; the kernel takes them back when it needs them
    major_faults: int
    oom_kills: int


@dataclass(frozen=True, slots=True)
class _Files:
    """Names that differ between the versions of the controller."""

    limit: str
    private: str  # line of memory.stat
    cached: str
    faults: str
    kills: str  # file with a line `oom_kill N`


_V1 = _Files("memory.limit_in_bytes", "total_rss", "total_cache", "total_pgmajfault", "memory.oom_control")
_V2 = _Files("memory.max", "anon", "file", "pgmajfault", "memory.events")


@dataclass(frozen=True, slots=True)
class ReadLimit:
    """Bytes per second from the disk that a folder lies on."""

    folder: Path
    bytes_per_s: int

    @property
    def device(self) -> str:
        """`MAJOR:MINOR` of the whole disk, as the controllers want it."""
        number = self.folder.stat().st_dev
        entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
        if (entry / "partition").exists():
            entry = entry.parent
        return (entry / "dev").read_text().strip()


class MemoryGroup:
    """Use as a context manager; all processes in it must be gone at the end."""

    def __init__(
        self, limit_bytes: int, *, read_limit: ReadLimit | None = None, proc: Path = Path("/proc/self")
    ) -> None:
        self.limit_bytes = limit_bytes
        self._read_limit = read_limit
        self._parent, self._files = _own_group(proc)
        self._path = self._parent / f"keepwarm-bench-{os.getpid()}-{time.monotonic_ns()}"
        self._paths = [self._path]
        if read_limit is not None and self._files is _V1:  # every controller of version 1 has groups of its own
            readers = _group_of(proc, "blkio")
            if readers is None:
                raise NoMemoryGroup("this system has no blkio controller; leave the limit of the disk out")
            self._paths.append(readers / self._path.name)

    def __enter__(self) -> MemoryGroup:
        """Raises NoMemoryGroup."""
        try:
            for path in self._paths:
                path.mkdir()
            if self._files is _V2 and not (self._path / _V2.limit).exists():
                (self._parent / "cgroup.subtree_control").write_text("+memory")
            (self._path / self._files.limit).write_text(str(self.limit_bytes))
            if self._read_limit is not None:
                self._limit_reads(self._read_limit)
        except OSError as error:
            for path in self._paths:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise NoMemoryGroup(
                f"no control group with a memory limit can be made below {self._parent}: {error}. Run as root, or in a "
                "container or scope of your own whose memory controller is delegated; --no-limit goes without"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        give_up_at = time.monotonic() + _CLOSE_LIMIT_S
        for path in self._paths:
            _remove(path, give_up_at)

    @property
    def place(self) -> tuple[str, ...]:
        """A command that moves itself into the group and becomes the command behind it."""
        enter = " && ".join(f"echo $$ > {shlex.quote(str(path / 'cgroup.procs'))}" for path in self._paths)
        return ("/bin/sh", "-c", f'{enter} && exec "$0" "$@"')

    def _limit_reads(self, limit: ReadLimit) -> None:
        if self._files is _V1:
            line = f"{limit.device} {limit.bytes_per_s}"
            (self._paths[-1] / "blkio.throttle.read_bps_device").write_text(line)
            return
        if not (self._path / "io.max").exists():
            (self._parent / "cgroup.subtree_control").write_text("+io")
        (self._path / "io.max").write_text(f"{limit.device} rbps={limit.bytes_per_s}")

    def use(self) -> GroupUse:
        stat = _numbers(self._path / "memory.stat")
        return GroupUse(
            private_bytes=stat[self._files.private],
            cached_bytes=stat[self._files.cached],
            major_faults=stat[self._files.faults],
            oom_kills=_numbers(self._path / self._files.kills).get("oom_kill", 0),
        )


def _remove(path: Path, give_up_at: float) -> None:
    while True:  # the kernel takes a moment to forget processes that have ended
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


def drop_from_cache(folder: Path) -> None:
    """Forget what the page cache holds of the models in it: pages that somebody else has read count for nobody in a
    group, and a load from there would be free."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("*.gguf"):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)  # pages that are not written yet would stay
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def _own_group(proc: Path) -> tuple[Path, _Files]:
    """Where this process's group lies in the file system, and which names it has there."""
    for controller, files in (("memory", _V1), ("", _V2)):
        if path := _group_of(proc, controller):
            return path, files
    raise NoMemoryGroup("this system has no memory controller. --no-limit goes without")


def _group_of(proc: Path, controller: str) -> Path | None:
    try:
        group = own_group(controller, proc)
    except OSError as error:
        raise NoMemoryGroup(f"this system has no control groups: {error}. --no-limit goes without") from error
    return None if group is None else group.path


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
