"""A few load/evict cycles leave nothing behind; `python -m benchmarks leaks` does thousands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.leaks import LANES, run_cycles

pytestmark = pytest.mark.e2e

CYCLES = 24
CONNECTIONS_PER_THREAD = 2  # one that writes tokens, and one of the client's pool
MAX_GROWTH_BYTES = 8 * 1024**2  # between the second and the last third: an interpreter's arenas still fill


def test_loads_and_evictions_leave_no_descriptors_threads_or_memory(tmp_path: Path) -> None:
    samples = run_cycles(tmp_path, CYCLES, CYCLES // 3, lambda done: None)
    processes = {each.process for each in samples}
    assert processes >= {"worker", "controller", "api"} | ({"nursery"} if sys.platform == "linux" else set())
    for process in processes:
        _, second, last = (each for each in samples if each.process == process)
        new_threads = max(0, last.threads - second.threads)  # pools start theirs when they first need so many
        assert new_threads <= LANES, process
        assert last.descriptors <= second.descriptors + LANES + CONNECTIONS_PER_THREAD * new_threads, process
        assert last.rss_bytes <= second.rss_bytes + MAX_GROWTH_BYTES, process
