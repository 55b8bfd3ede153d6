"""How many threads a runner may use: the cores that this process is really given."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(*, cpu_max: Path = CPU_MAX) -> int:
    """Physical cores, within the process's affinity and the quota of its control group.

    Hyper-threads only get in each other's way when they multiply matrices, and threads beyond a container's quota are
    stopped in the middle of a barrier that the others wait at.
    """
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    bounds = [physical]
    if hasattr(os, "sched_getaffinity"):
        bounds.append(len(os.sched_getaffinity(0)))
    quota = _quota(cpu_max)
    if quota is not None:
        bounds.append(quota)
    return max(1, min(bounds))


def _quota(cpu_max: Path) -> int | None:
    """Whole cores of a version 2 group: `max 100000` is none, `250000 100000` are two and a half."""
    try:
        quota_us, period_us = cpu_max.read_text().split()
        return int(quota_us) // int(period_us)
    except (OSError, ValueError, ZeroDivisionError):
        return None
