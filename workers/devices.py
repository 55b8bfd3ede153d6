"""The device whose memory a worker's models share: its name, what is available, and what one runner takes of it.

CPU figures come from /proc and control groups on Linux, from psutil elsewhere. NVIDIA figures come from NVML
(https://docs.nvidia.com/deploy/nvml-api/), which may not tell the bytes of a single process: inside a container the
driver reports the process ids of the host, and some driver modes report none at all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import structlog

from tasks.errors import InvalidSetting
from workers import memory_groups
from workers.messages import AddressRange
from workers.page_map import untouched_bytes

log = structlog.get_logger(__name__)

BUDGET_SHARE = 0.8  # of what is available at start; the rest is for the system and for what no formula knows
CPU_OVERHEAD_BYTES = 26 * 1024**2  # interpreter and libraries
TOKEN_TABLE_BYTES = 256  # of main memory per entry of the vocabulary: llama.cpp's tables and the engine's pieces
SHARED_BYTES = 17 * 1024**2  # of them, what a runner that was forked goes on sharing with its nursery
SPARE_BYTES = 28 * 1024**2  # private memory of a process that has imported the engine and knows no model
CUDA_OVERHEAD_BYTES = 512 * 1024**2  # CUDA context, kernels and cuBLAS workspace
_CUDA_NAME = re.compile(r"cuda(?::(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMapping:
    """How a runner got at its weights, and where it will take memory that it has been promised."""

    paths: tuple[Path, ...]
    weight_bytes: int
    copied_bytes: int = 0  # weights that were copied out of the mapping, into buffers of their own
    untouched: tuple[AddressRange, ...] = ()  # as in `workers.messages.Ready`


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """What was free before a load, and how often runners had come or gone by then."""

    free_bytes: int | None
    num_moves: int

    def taken_bytes(self, free_bytes: int | None, num_moves: int) -> int | None:
        """What the load took, if nothing else came or went meanwhile; None when nobody can tell."""
        if free_bytes is None or self.free_bytes is None or num_moves != self.num_moves:
            return None
        return max(0, self.free_bytes - free_bytes)


class Device(Protocol):
    """Where a worker's models live. Figures are bytes."""

    @property
    def name(self) -> str:
        """`cpu`, `cuda:0 NVIDIA H100`."""
        ...

    @property
    def runner_overhead_bytes(self) -> int:
        """What a runner takes beside weights, KV and compute buffers."""
        ...

    @property
    def spare_bytes(self) -> int:
        """What a process takes that has imported the engine and has no model."""
        ...

    @property
    def token_table_bytes(self) -> int:
        """And that for each entry of its model's vocabulary."""
        ...

    def total_bytes(self) -> int: ...

    def available_bytes(self) -> int: ...

    def runner_bytes(self, pid: int, mapping: ModelMapping) -> int | None:
        """What the process takes of this device; None when the device doesn't tell."""
        ...

    def free_mark(self) -> int | None:
        """Free bytes now, to see what a load takes of a device that says nothing about single processes; None where
        others than the worker's runners come and go."""
        ...

    def has_released(self, pid: int) -> bool:
        """True when the device agrees that a process that is gone holds nothing any more."""
        ...


def default_budget(device: Device) -> int:
    return int(device.available_bytes() * BUDGET_SHARE)


def find_device(wanted: str, *, gpu_layers: int, main_gpu: int, shares: Sequence[float] | None = None) -> Device:
    """`auto`: the GPU when layers go there and NVML knows it, else the CPU; `cpu`; `cuda` or `cuda:1`.

    `shares`: models are split over GPUs, whose memory is then one; () is all of them, else those with a share above 0.
    Raises InvalidSetting for a name that is none, and for a GPU that is not there."""
    if wanted == "cpu" or (wanted == "auto" and gpu_layers == 0):
        return CpuDevice()
    match = _CUDA_NAME.fullmatch("cuda" if wanted == "auto" else wanted)
    if match is None:
        raise InvalidSetting("KEEPWARM_DEVICE", f"use auto, cpu or cuda:NUMBER (got {wanted!r})")
    index = int(match[1]) if match[1] else main_gpu
    try:
        return NvidiaDevice.open(index) if shares is None else NvidiaDevice.open_split(shares)
    except NvmlUnavailable as error:
        if wanted == "auto":
            return CpuDevice()
        if shares is not None:
            raise InvalidSetting("KEEPWARM_TENSOR_SPLIT", f"not all of these GPUs are here: {error}") from error
        raise InvalidSetting("KEEPWARM_DEVICE", f"there is no GPU {index} here: {error}") from error


class CpuDevice:
    """Main memory, within the limits of the process's control groups.

    What forked runners share with their nursery is the nursery's: it counts once, whoever comes and goes."""

    name = "cpu"
    spare_bytes = SPARE_BYTES
    token_table_bytes = TOKEN_TABLE_BYTES

    def __init__(self, *, forks_runners: bool = False, proc: Path = Path("/proc")) -> None:
        self.runner_overhead_bytes = CPU_OVERHEAD_BYTES - (SHARED_BYTES if forks_runners else 0)
        self._proc = proc

    def total_bytes(self) -> int:
        total, limit = psutil.virtual_memory().total, memory_groups.limit_bytes(self._proc)
        return total if limit is None else min(total, limit)

    def available_bytes(self) -> int:
        available, left = psutil.virtual_memory().available, memory_groups.available_bytes(self._proc)
        return available if left is None else min(available, left)

    def idle_bytes(self) -> int:
        """What can be had without dropping pages of files that were used lately, as far as control groups tell."""
        available, left = psutil.virtual_memory().available, memory_groups.idle_bytes(self._proc)
        return available if left is None else min(available, left)

    def runner_bytes(self, pid: int, mapping: ModelMapping) -> int | None:
        """Private bytes, and those that it will have when it writes to all of its context, plus the weights once when
        they are memory-mapped. Weights that llama.cpp repacked into buffers of its own are not counted in the mapping
        again: nothing reads those pages any more.

        Resident size would count the mapped pages too, which the kernel drops under pressure and which every
        process that maps the file shares: as a budget it means nothing.
        """
        if sys.platform != "linux":
            return self._portable_runner_bytes(pid, mapping)
        try:
            untouched = untouched_bytes(self._proc, pid, mapping.untouched) if mapping.untouched else 0
            weights = max(0, self._mapped_bytes(pid, mapping) - mapping.copied_bytes)
            return self._private_bytes(pid) + untouched + weights
        except (OSError, ValueError):
            return None  # gone, or not ours

    def free_mark(self) -> int | None:
        return None

    def has_released(self, pid: int) -> bool:
        return not (self._proc / str(pid)).exists() if sys.platform == "linux" else not psutil.pid_exists(pid)

    def _private_bytes(self, pid: int) -> int:
        """Anonymous memory, swapped out or not, without the pages that others still share since a fork.

        /proc tells only bounds of those. Dirty shared pages may be the weights', of a file that was written lately; and
        each sharer's part of the shared ones is half at most. For one runner and its nursery that is exact."""
        fields = _fields_kib(self._proc / str(pid) / "smaps_rollup")
        anonymous = fields.get("Anonymous", 0)
        shared = min(fields.get("Shared_Dirty", 0), 2 * (anonymous - fields.get("Pss_Anon", anonymous)))
        return (anonymous - shared + fields.get("SwapPss", fields.get("Swap", 0))) * 1024

    def _mapped_bytes(self, pid: int, mapping: ModelMapping) -> int:
        """Address ranges that map the model's files; llama.cpp unmaps what it has copied elsewhere."""
        names = {str(path) for path in mapping.paths} | {str(path.resolve()) for path in mapping.paths}
        mapped = 0
        for line in (self._proc / str(pid) / "maps").read_text(errors="replace").splitlines():
            columns = line.split(maxsplit=5)
            if len(columns) == 6 and columns[5] in names:
                start, end = columns[0].split("-")
                mapped += int(end, 16) - int(start, 16)
        return mapped

    @staticmethod
    def _portable_runner_bytes(pid: int, mapping: ModelMapping) -> int | None:
        try:
            return int(psutil.Process(pid).memory_full_info().uss) + mapping.weight_bytes
        except psutil.Error:
            return None


class NvmlUnavailable(Exception):
    """No driver, no library, or no such device."""


class NvidiaDevice:
    """One GPU, or several that models are split over, by NVML. The library is passed in, so that tests can bring their
    own. Of several the memory is added up: llama.cpp fills them by their shares, which should be those of their memory.
    """

    runner_overhead_bytes = CUDA_OVERHEAD_BYTES
    spare_bytes = 0  # it touches the GPU only when it loads
    token_table_bytes = 0  # it is in main memory

    def __init__(self, nvml: Any, *indices: int) -> None:
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in indices]
            name = nvml.nvmlDeviceGetName(self._handles[0])
        except nvml.NVMLError as error:
            raise NvmlUnavailable(str(error)) from error
        numbers = "+".join(map(str, indices))
        self.name = f"cuda:{numbers} {name.decode() if isinstance(name, bytes) else name}"

    @classmethod
    def open(cls, index: int) -> NvidiaDevice:
        """Raises NvmlUnavailable."""
        return cls(_import_nvml(), index)

    @classmethod
    def count(cls) -> int:
        """GPUs of this machine. Raises NvmlUnavailable."""
        nvml = _import_nvml()
        try:
            nvml.nvmlInit()
            return int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError as error:
            raise NvmlUnavailable(str(error)) from error

    @classmethod
    def open_split(cls, shares: Sequence[float]) -> NvidiaDevice:
        """The GPUs with a share, or all of them. Raises NvmlUnavailable."""
        if shares:
            return cls(_import_nvml(), *(index for index, share in enumerate(shares) if share > 0))
        return cls(_import_nvml(), *range(cls.count()))

    def total_bytes(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in self._handles)

    def available_bytes(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in self._handles)

    def runner_bytes(self, pid: int, mapping: ModelMapping) -> int | None:
        told = [process.usedGpuMemory for process in self._processes() if process.pid == pid]
        return sum(map(int, told)) if told and all(told) else None

    def free_mark(self) -> int | None:
        return self.available_bytes()

    def has_released(self, pid: int) -> bool:
        return all(process.pid != pid for process in self._processes())

    def _processes(self) -> Iterable[Any]:
        try:
            return [
                process
                for handle in self._handles
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            ]
        except self._nvml.NVMLError as error:
            log.warning("nvml_failed", device=self.name, error=str(error))
            return []


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise NvmlUnavailable("the package nvidia-ml-py is not installed") from error
    return pynvml


def _fields_kib(path: Path) -> dict[str, int]:
    """`Name:   123 kB` lines of a /proc file."""
    fields: dict[str, int] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value.split()[0])
    return fields
