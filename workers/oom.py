"""Has the kernel killed anything for want of memory? Its counters tell an out-of-memory kill from any other SIGKILL."""

from __future__ import annotations

from pathlib import Path

VMSTAT = Path("/proc/vmstat")  # `oom_kill N`: the whole machine
CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")  # `oom_kill N`: our container (cgroup v2)


def kernel_oom_kills(sources: tuple[Path, ...] = (VMSTAT, CGROUP_EVENTS)) -> int:
    """A number that grows with every out-of-memory kill; 0 where the kernel does not say (macOS)."""
    return sum(_count(source) for source in sources)


def _count(source: Path) -> int:
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
