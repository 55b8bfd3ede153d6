"""Give the pages of a new context back to the system until something is written to them. Linux.

llama.cpp zeroes a KV cache when it makes one, which takes all of its memory at once, though few conversations ever
reach the end of their context. A private page of zeros that is given back (madvise(2), MADV_DONTNEED) reads as zeros
all the same and returns when it is written. Until then the page cache has its memory, and the files of models that may
be wanted next lie there. The ledger counts it all along: no answer ever finds that the memory is gone.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from workers.messages import AddressRange
from workers.page_map import anonymous_ranges, num_absent

PIECE_BYTES = 256 * 1024  # looked at, and given back, as one
_SMALLEST_BYTES = 4 * 1024**2  # buffers of llama.cpp's; the interpreter allocates less at once
_MADV_DONTNEED = 4
_MAPS = Path("/proc/self/maps")


@contextmanager
def zeros_given_back(is_wanted: bool) -> Iterator[list[AddressRange]]:
    """Around the making of a context in main memory. The list is filled at the end: where pages were given back.

    No thread but this one may write to what was allocated within, unless it holds the GIL."""
    given_back: list[AddressRange] = []
    is_possible = is_wanted and sys.platform == "linux"
    before = anonymous_ranges(_MAPS) if is_possible else []
    yield given_back
    if is_possible:
        with _no_other_thread():
            for start, end in parts_outside(anonymous_ranges(_MAPS), before):
                if end - start >= _SMALLEST_BYTES:
                    given_back += give_back_zeros(start, end)


def give_back_zeros(start: int, end: int) -> list[AddressRange]:
    """Within private anonymous memory of this process, from a page's first byte on; neighbours are one range.

    Only pages that were written: what is merely reserved, as for the largest of all graphs, may never be."""
    libc = ctypes.PyDLL(None)  # keeps the GIL: nothing is written between the look at a piece and its end
    zeros = ctypes.create_string_buffer(PIECE_BYTES)
    found: list[AddressRange] = []
    with Path("/proc/self/pagemap").open("rb") as page_map:
        for piece in range(start, end, PIECE_BYTES):
            part = (piece, min(piece + PIECE_BYTES, end))
            address, size = ctypes.c_void_p(piece), ctypes.c_size_t(part[1] - piece)
            if num_absent(page_map, part) or libc.memcmp(address, zeros, size) != 0:
                continue
            if libc.madvise(address, size, _MADV_DONTNEED) == 0:
                first = found.pop()[0] if found and found[-1][1] == piece else piece
                found.append((first, part[1]))
    return found


def parts_outside(ranges: Sequence[AddressRange], others: Sequence[AddressRange]) -> Iterator[AddressRange]:
    """What of `ranges` is in none of `others`; both are sorted."""
    for start, end in ranges:
        rest = start
        for low, high in others:
            if rest < high and low < end:
                if rest < low:
                    yield rest, low
                rest = high
        if rest < end:
            yield rest, end


@contextmanager
def _no_other_thread() -> Iterator[None]:
    """Of Python's runs within, unless this one waits for something."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    time.sleep(1.5 * interval_s)  # those that began to wait by the old interval have had their turn
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
