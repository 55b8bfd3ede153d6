"""Which pages of a process are in memory: /proc/PID/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst)."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from workers.messages import AddressRange

_ENTRY_BYTES = 8
_HIGHEST_BYTE = 7 if sys.byteorder == "little" else 0
_ABSENT = bytes(range(0b0100_0000))  # the highest byte of an entry without bits 63, in memory, and 62, swapped out


def untouched_bytes(proc: Path, pid: int, ranges: Iterable[AddressRange]) -> int:
    """Bytes of these ranges, as far as they are still mapped, that take no memory until they are written to.

    Raises OSError when the process is gone or not ours."""
    mapped = anonymous_ranges(proc / str(pid) / "maps")
    with (proc / str(pid) / "pagemap").open("rb") as page_map:
        parts = _common_parts(ranges, mapped)
        return sum(num_absent(page_map, part) for part in parts) * mmap.PAGESIZE


def num_absent(page_map: BinaryIO, where: AddressRange) -> int:
    """Pages of this range that are neither in memory nor swapped out."""
    first, last = where[0] // mmap.PAGESIZE, -(-where[1] // mmap.PAGESIZE)
    page_map.seek(first * _ENTRY_BYTES)
    highest = page_map.read((last - first) * _ENTRY_BYTES)[_HIGHEST_BYTE::_ENTRY_BYTES]
    return len(highest) - len(highest.translate(None, _ABSENT))


def anonymous_ranges(maps: Path) -> list[AddressRange]:
    """Of /proc/PID/maps, in their order: private and writable memory that belongs to no file."""
    found = []
    for line in maps.read_text(errors="replace").splitlines():
        columns = line.split(maxsplit=5)
        if len(columns) == 5 and columns[1] == "rw-p":
            start, end = columns[0].split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _common_parts(ranges: Iterable[AddressRange], others: Iterable[AddressRange]) -> Iterable[AddressRange]:
    pairs = [(max(start, low), min(end, high)) for start, end in ranges for low, high in others]
    return [(start, end) for start, end in pairs if start < end]
