"""What the model processes of a server hold together, looked at all the time, by the same measure for everyone."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from types import TracebackType

import msgspec
import psutil

from workers.devices import CpuDevice, ModelMapping

LOOK_S = 0.2


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    peak_bytes: int  # private memory plus mapped weights of all model processes at one moment
    num_processes: int  # that had a model, one after another: loads


class MemoryWatch:
    """Watches the descendants of some processes that map one of the model files. Use as a context manager."""

    def __init__(self, roots: list[int], models: Path) -> None:
        self._roots = roots
        self._mapping = ModelMapping(paths=tuple(sorted(models.glob("*.gguf"))), weight_bytes=0)
        self._names = {str(path.resolve()) for path in self._mapping.paths}
        self._device = CpuDevice()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._peak_bytes = 0
        self._seen: set[tuple[int, float]] = set()

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def use(self) -> MemoryUse:
        return MemoryUse(peak_bytes=self._peak_bytes, num_processes=len(self._seen))

    def now(self) -> dict[int, int]:
        """pid → bytes of every process that has a model."""
        held = {}
        for process in self._model_processes():
            measured = self._device.runner_bytes(process.pid, self._mapping)
            if measured is not None:
                held[process.pid] = measured
        return held

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            self._peak_bytes = max(self._peak_bytes, sum(self.now().values()))
            self._stopping.wait(max(0.0, LOOK_S - (time.monotonic() - began)))

    def _model_processes(self) -> list[psutil.Process]:
        found = []
        for root in self._roots:
            with contextlib.suppress(psutil.Error):
                found += psutil.Process(root).children(recursive=True)
        with_model = []
        for process in found:
            with contextlib.suppress(psutil.Error, OSError):
                if any(line.rstrip().rpartition(" ")[2] in self._names for line in self._maps(process.pid)):
                    with_model.append(process)
                    self._seen.add((process.pid, process.create_time()))
        return with_model

    @staticmethod
    def _maps(pid: int) -> list[str]:
        return Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
