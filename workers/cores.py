"""How many threads a runner may use: the cores that this process is really given."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from workers.control_groups import own_levels


def usable_cores(proc: Path = Path("/proc")) -> int:
    """Physical cores, within the process's affinity and the quotas of its control groups.

    Hyper-threads only get in each other's way when they multiply matrices, and threads beyond a container's quota are
    stopped in the middle of a barrier that the others wait at.
    """
    bounds = [psutil.cpu_count(logical=False) or psutil.cpu_count() or 1, *_quotas(proc)]
    if hasattr(os, "sched_getaffinity"):
        bounds.append(len(os.sched_getaffinity(0)))
    return max(1, min(bounds))


def _quotas(proc: Path) -> Iterator[int]:
    """Whole cores of each level that has a quota: 250 ms of 100 ms are two and a half, so two.

    A file that is not there, or holds no numbers (`max`), is no quota."""
    for group in own_levels("cpu", proc / "self"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota_us = int((group / "cpu.cfs_quota_us").read_text())
            if quota_us >= 0:  # -1: none
                yield quota_us // int((group / "cpu.cfs_period_us").read_text())
    for group in own_levels("", proc / "self"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) // int(period)
