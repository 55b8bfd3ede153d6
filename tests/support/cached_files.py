"""Files of which a known part lies in the page cache. Linux only: elsewhere nobody drops pages on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.page_cache import cached_share


def write_uncached(path: Path, num_bytes: int) -> Path:
    path.write_bytes(os.urandom(num_bytes))
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    if (cached_share(path) or 0) > 0.5:
        pytest.skip("this file system keeps its pages")
    return path


def bring_in(path: Path, first: int, last: int) -> None:
    """Only these bytes, and none ahead of them."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    while first < last:
        first += len(os.pread(file, last - first, first))
    os.close(file)
