"""Pages of zeros go back to the system, and nothing else does."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest

from workers.devices import CpuDevice, ModelMapping
from workers.engine.untouched import PIECE_BYTES, give_back_zeros, parts_outside, zeros_given_back
from workers.messages import AddressRange
from workers.page_map import untouched_bytes

MIB = 1024**2
PROC = Path("/proc")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def zeroed_buffer(size: int) -> tuple[mmap.mmap, AddressRange]:
    """Private memory of which every page was written."""
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.write(bytes(size))
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return buffer, (start, start + size)


def absent(where: AddressRange) -> int:
    return untouched_bytes(PROC, os.getpid(), [where])


@linux_only
def test_written_zeros_are_given_back_and_what_is_not_zero_stays() -> None:
    buffer, where = zeroed_buffer(8 * MIB)
    buffer[3 * MIB + 17] = 42
    assert absent(where) == 0
    ranges = give_back_zeros(*where)
    kept = where[0] + 3 * MIB
    assert ranges == [(where[0], kept), (kept + PIECE_BYTES, where[1])]
    assert absent(where) == 8 * MIB - PIECE_BYTES
    assert buffer[3 * MIB + 17] == 42
    assert not any(buffer[: 3 * MIB])


@linux_only
def test_page_that_is_written_later_is_there_again() -> None:
    buffer, where = zeroed_buffer(4 * MIB)
    give_back_zeros(*where)
    buffer[MIB] = 1
    buffer[2 * MIB] = 1
    assert absent(where) == 4 * MIB - 2 * mmap.PAGESIZE


@linux_only
def test_memory_that_was_unmapped_since_does_not_wait_to_be_touched() -> None:
    _, where = zeroed_buffer(4 * MIB)
    give_back_zeros(*where)
    libc = ctypes.CDLL(None)
    half = ctypes.c_void_p(where[0] + 2 * MIB)
    assert libc.munmap(half, ctypes.c_size_t(2 * MIB)) == 0
    libc.mmap.restype = ctypes.c_void_p
    assert absent(where) == 2 * MIB
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED: the buffer's owner unmaps all of it later
    assert libc.mmap(half, ctypes.c_size_t(2 * MIB), mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == half.value


@linux_only
def test_only_what_was_allocated_within_is_given_back() -> None:
    _, before = zeroed_buffer(8 * MIB)
    with zeros_given_back(True) as ranges:
        _, within = zeroed_buffer(8 * MIB)
    assert absent(before) == 0
    assert absent(within) >= 8 * MIB - PIECE_BYTES  # a neighbour may share the first or the last piece
    assert sum(end - start for start, end in ranges) >= absent(within)


@linux_only
def test_nothing_is_given_back_unless_it_is_wanted() -> None:
    with zeros_given_back(False) as ranges:
        _, within = zeroed_buffer(8 * MIB)
    assert ranges == []
    assert absent(within) == 0


@linux_only
def test_promised_memory_counts_for_the_device_before_it_is_taken() -> None:
    device, nothing = CpuDevice(), ModelMapping(paths=(), weight_bytes=0)
    _, where = zeroed_buffer(32 * MIB)
    before = device.runner_bytes(os.getpid(), nothing)
    ranges = tuple(give_back_zeros(*where))
    after = device.runner_bytes(os.getpid(), nothing)
    promised = device.runner_bytes(os.getpid(), ModelMapping(paths=(), weight_bytes=0, untouched=ranges))
    assert before is not None
    assert after is not None
    assert promised is not None
    assert before - after > 30 * MIB
    assert abs(promised - before) < MIB


def test_parts_outside_of_others_are_found_in_order() -> None:
    others = [(0, 10), (20, 30), (40, 50)]
    assert list(parts_outside([(5, 25), (30, 60), (70, 80)], others)) == [(10, 20), (30, 40), (50, 60), (70, 80)]
    assert list(parts_outside([(22, 28)], others)) == []
    assert list(parts_outside([(1, 2)], [])) == [(1, 2)]
