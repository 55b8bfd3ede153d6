"""What of a file lies in the kernel's page cache, and bringing the rest there. Linux and macOS."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from workers.libc import libc

_SAMPLE_BYTES = 64 * 1024**2  # looked at per window: a large file is asked about in a few of them
_WINDOWS = 8
_PIECE_BYTES = 4 * 1024**2
_CACHED_SHARE = 0.9
_MOST_TRIES = 64  # pages that are tried at random
_MISSES_BY_CHANCE = 2


def cached_share(path: Path) -> float | None:
    """0 to 1, of a sample of the file's pages; None where the system does not tell. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        share = _resident_share(file, size) if size else None
        return _tried_share(file, size) if share == 1.0 and not _hears_the_truth(path) else share


def is_cached(path: Path) -> bool | None:
    """Whether a load would read next to nothing of it from the disk; None where nobody can tell. Raises OSError."""
    share = cached_share(path)
    return None if share is None else share >= _CACHED_SHARE


def read_through(path: Path, goes_on: Callable[[float], bool]) -> bool:
    """Read the file once, so that its pages are cached; False when `goes_on`, which hears the share that was read,
    ended it. Raises OSError.

    Advice to the kernel (POSIX_FADV_WILLNEED) is cut off after a few megabytes."""
    size = max(1, path.stat().st_size)
    done = 0
    with path.open("rb", buffering=0) as file, Path(os.devnull).open("wb", buffering=0) as nowhere:
        take = _passer(file, nowhere) if sys.platform == "linux" else _reader(file)
        while goes_on(min(1.0, done / size)):
            taken = take(done)
            if not taken:
                return True
            done += taken
    return False


def _passer(file: FileIO, nowhere: FileIO) -> Callable[[int], int]:
    """From an offset on, without a copy of the bytes: sendfile(2) hands the pages over, and takes 0.014 s of CPU for
    562 MB where read(2) takes 0.05 to 0.12."""
    return lambda offset: os.sendfile(nowhere.fileno(), file.fileno(), offset, _PIECE_BYTES)


def _reader(file: FileIO) -> Callable[[int], int]:
    buffer = bytearray(_PIECE_BYTES)
    return lambda _offset: file.readinto(buffer)


def _resident_share(file: FileIO, size: int) -> float | None:
    """mincore(2), of some windows."""
    if os.name != "posix" or not hasattr(libc(), "mincore"):
        return None
    num_cached = num_pages = 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        for offset, length in _windows(size):
            pages = bytearray(-(-length // mmap.PAGESIZE))
            vector = ctypes.byref(ctypes.c_char.from_buffer(pages))  # an array would have a class of its own per length
            if libc().mincore(ctypes.c_void_p(start + offset), ctypes.c_size_t(length), vector) != 0:
                return None
            num_cached += sum(page & 1 for page in pages)
            num_pages += len(pages)
    return num_cached / num_pages


def _hears_the_truth(path: Path) -> bool:
    """Since Linux 5.2 mincore(2) says "all of it" to those who neither own a file nor may write to it."""
    return sys.platform != "linux" or path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK)


def _tried_share(file: FileIO, size: int) -> float | None:
    """Of random pages, those that a read gets which must not wait (RWF_NOWAIT, preadv(2)); None where the file system
    has no such reads.

    The kernel reads a page that is missing all the same, later. So it ends as soon as no chance explains how many are
    missing, after three pages of a file that is not cached; and each look tries others, so that what one has brought in
    is no more likely than the rest to be seen by the next."""
    if sys.platform != "linux":
        return None
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # else more than the page may be read
    num_pages = -(-size // mmap.PAGESIZE)
    byte = bytearray(1)
    num_tried = num_missing = 0
    for page in random.sample(range(num_pages), min(num_pages, _MOST_TRIES)):
        try:
            os.preadv(file.fileno(), [byte], page * mmap.PAGESIZE, os.RWF_NOWAIT)
        except BlockingIOError:
            num_missing += 1
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise
        num_tried += 1
        if num_missing > _MISSES_BY_CHANCE + (1 - _CACHED_SHARE) * num_tried:
            break
    return 1 - num_missing / num_tried


def _windows(size: int) -> list[tuple[int, int]]:
    """Page-aligned (offset, length) pieces, evenly spread."""
    if size <= _SAMPLE_BYTES:
        return [(0, size)]
    length = _SAMPLE_BYTES // _WINDOWS
    step = (size - length) // (_WINDOWS - 1)
    return [(index * step // mmap.PAGESIZE * mmap.PAGESIZE, length) for index in range(_WINDOWS)]
