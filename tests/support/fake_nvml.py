"""NVML as NVIDIA's library behaves on one GPU, by the API reference: enough of pynvml for `workers.devices`."""

from __future__ import annotations

from dataclasses import dataclass, field


class NVMLError(Exception):
    pass


@dataclass(frozen=True)
class MemoryInfo:
    total: int
    free: int
    used: int


@dataclass(frozen=True)
class ProcessInfo:
    pid: int
    usedGpuMemory: int | None  # None where the driver does not tell (WDDM, some containers)


@dataclass
class FakeNvml:
    """GPUs that are all alike. `processes` maps pid → bytes, on each of them."""

    NVMLError = NVMLError

    total: int = 80 * 1024**3
    processes: dict[int, int | None] = field(default_factory=dict)
    has_driver: bool = True
    name: str | bytes = "NVIDIA H100"
    refuses_processes: bool = False
    num_gpus: int = 1

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return self.num_gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index >= self.num_gpus:
            raise NVMLError("Invalid Argument")
        return "handle"

    def nvmlDeviceGetName(self, handle: str) -> str | bytes:
        return self.name

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> MemoryInfo:
        used = sum(each or 0 for each in self.processes.values())
        return MemoryInfo(total=self.total, free=self.total - used, used=used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[ProcessInfo]:
        if self.refuses_processes:
            raise NVMLError("Not Supported")
        return [ProcessInfo(pid, used) for pid, used in self.processes.items()]
