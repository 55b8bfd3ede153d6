"""What the model processes of a server hold together, looked at all the time, by the same measure for everyone.

Counted is private memory: repacked weights, KV caches, buffers. What a process only maps of a model's file belongs to
the page cache, which gives it back under pressure."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from types import TracebackType

import msgspec
import psutil

LOOK_S = 0.5


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    peak_bytes: int  # of all model processes at one moment
    num_processes: int  # that had a model, one after another: loads


class MemoryWatch:
    """Watches the descendants of some processes that map one of the model files. Use as a context manager."""

    def __init__(self, roots: list[int], models: Path) -> None:
        self._roots = roots
        self._names = {str(path.resolve()) for path in models.glob("*.gguf")}
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

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            self._peak_bytes = max(self._peak_bytes, sum(map(_private_bytes, self._model_processes())))
            self._stopping.wait(max(0.0, LOOK_S - (time.monotonic() - began)))

    def _model_processes(self) -> list[psutil.Process]:
        found = []
        for root in self._roots:
            with contextlib.suppress(psutil.Error):
                found += psutil.Process(root).children(recursive=True)
        with_model = []
        for process in found:
            with contextlib.suppress(psutil.Error, OSError):
                maps = Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
                if any(line.rpartition(" ")[2] in self._names for line in maps.splitlines()):
                    with_model.append(process)
                    self._seen.add((process.pid, process.create_time()))
        return with_model


def _private_bytes(process: psutil.Process) -> int:
    """RssAnon of /proc/PID/status, which costs nothing to read; smaps would stop a runner for milliseconds."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
