"""Bounds on log files that processes keep open."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

LOG_BYTES = 64 * 1024**2  # of a log, and of its one older generation


def older_generation(path: Path) -> Path:
    """`NAME.log.1` of `NAME.log`."""
    return path.with_suffix(".log.1")


def bound_logs(folder: Path, max_bytes: int = LOG_BYTES) -> None:
    """Begin each `*.log` anew that has outgrown its bound; its end becomes its older generation.

    Whoever writes keeps the file open, so it is copied and emptied instead of renamed (`copytruncate` of logrotate).
    Writers must have opened it with O_APPEND, or they would go on behind a hole. A line written between the copy's last
    byte and the emptying is lost.
    """
    with suppress(OSError):  # a log is never worth the end of those who write it
        for path in folder.glob("*.log"):
            bound_log(path, max_bytes)


def bound_log(path: Path, max_bytes: int = LOG_BYTES) -> None:
    """The same for one log. Nothing happens where it does not exist, can't be written, or another process is at it."""
    with suppress(OSError):
        if path.stat().st_size <= max_bytes:
            return
        with path.open("r+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = os.fstat(log.fileno())
            if now.st_size <= max_bytes:
                return  # somebody else was quicker
            log.seek(now.st_size - max_bytes)
            _keep(log.fileno(), older_generation(path), stat.S_IMODE(now.st_mode))
            os.ftruncate(log.fileno(), 0)


def _keep(log: int, target: Path, mode: int) -> None:
    """Copy the rest of `log`. The former copy goes first, so that the disk needs no room for three; where not even that
    is enough there is no copy: a full disk stops the store's writes, and lines that nobody reads are worth less."""
    target.unlink(missing_ok=True)
    try:
        with (
            open(log, "rb", closefd=False) as source,
            open(os.open(target, os.O_WRONLY | os.O_CREAT, mode), "wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1024**2)
    except OSError:
        target.unlink(missing_ok=True)
