"""Small files that several processes of one home keep together. Linux and macOS."""

from __future__ import annotations

import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TURN_LIMIT_S = 2.0  # a writer reads, joins and syncs one small file
LOOK_S = 0.01
MAX_HOLDER_BYTES = 200


class FileHeld(OSError):
    """Another process has been writing for too long; str(error) names it."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"{holder} has kept the lock of {path} for more than {TURN_LIMIT_S:g} s: it hangs, or its disk does"
        )


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Read the file, add to it and replace it in here, and nothing that another process adds is lost.

    The lock is a file of its own, since the one that it protects is replaced; it ends with its process, and names it.
    Raises OSError; FileHeld when others write for longer than TURN_LIMIT_S."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _await_turn(descriptor, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode()[:MAX_HOLDER_BYTES], 0)
        yield
    finally:
        os.close(descriptor)


def _await_turn(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + TURN_LIMIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, MAX_HOLDER_BYTES, 0).decode(errors="replace")
                raise FileHeld(path, holder or "another process") from None
            time.sleep(LOOK_S)
        else:
            return


def replace_file(path: Path, content: bytes) -> None:
    """Write so that a reader, or a crash, sees the old content or the new one, never a part. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
