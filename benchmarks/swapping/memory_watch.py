"""What the model processes of a server hold together, looked at all the time, by the same measure for everyone.

Counted is private memory: repacked weights, KV caches, buffers. What a process only maps of a model's file belongs to
the page cache, which gives it back under pressure.

For Keepwarm the ledger of its worker is held against that, with two things added: the weights that a runner works from
in the mapping (those that were not repacked into private memory), and what is left of the cache that it gave back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import gguf
import httpx2
import msgspec
import psutil

from workers.messages import AddressRange
from workers.page_map import untouched_bytes

LOOK_S = 0.5
LEDGER_LOOK_S = 2.0  # it costs the front a request
# Blocks that llama.cpp's CPU backend on x86 lays out anew when it loads (ggml-cpu/repack.cpp).
REPACKED = {"Q4_0", "Q4_K", "Q2_K", "IQ4_NL"}


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    peak_bytes: int  # of all model processes at one moment
    num_processes: int  # that had a model, one after another: loads
    ledger_errors: list[float]  # ledger / measured - 1, over all ready runners, whenever that was looked at
    held_bytes: dict[str, int]  # by the path of the file: in the ledger, on average while its runner was ready


class Weights(msgspec.Struct, frozen=True):
    """Bytes of a file's tensors, and those among them that may be repacked."""

    all_bytes: int
    repacked_bytes: int


def read_weights(models: Path) -> dict[str, Weights]:
    """By the path of the file."""
    found = {}
    for path in models.glob("*.gguf"):
        tensors = gguf.GGUFReader(path).tensors
        repacked = sum(int(each.n_bytes) for each in tensors if each.tensor_type.name in REPACKED)
        found[str(path.resolve())] = Weights(sum(int(each.n_bytes) for each in tensors), repacked)
    return found


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells of a runner."""

    held_bytes: int  # of its budget
    closed_bytes: int  # that it will hold beside them when all of its slots are open
    untouched: list[AddressRange]  # memory that is taken when it is first written to


class MemoryWatch:
    """Watches the descendants of some processes that map one of the model files. Use as a context manager.

    `ledger` tells what a worker accounts for its ready runners, by pid; it may raise httpx2.HTTPError."""

    def __init__(
        self, roots: list[int], weights: Mapping[str, Weights], ledger: Callable[[], Mapping[int, Account]]
    ) -> None:
        self._roots = roots
        self._weights = weights
        self._ledger = ledger
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._peak_bytes = 0
        self._seen: set[tuple[int, float]] = set()
        self._errors: list[float] = []
        self._held: defaultdict[str, list[int]] = defaultdict(list)

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
        return MemoryUse(
            peak_bytes=self._peak_bytes,
            num_processes=len(self._seen),
            ledger_errors=[round(e, 4) for e in self._errors],
            held_bytes={path: sum(each) // len(each) for path, each in self._held.items()},
        )

    def _run(self) -> None:
        ledger_due = 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            processes = self._model_processes()
            self._peak_bytes = max(self._peak_bytes, sum(map(_private_bytes, processes)))
            if began >= ledger_due:
                ledger_due = began + LEDGER_LOOK_S
                with contextlib.suppress(httpx2.HTTPError):
                    self._compare(self._ledger(), processes)
            self._stopping.wait(max(0.0, LOOK_S - (time.monotonic() - began)))

    def _compare(self, ledger: Mapping[int, Account], processes: Mapping[psutil.Process, str]) -> None:
        """Of runners that were there before and after the ledger was read."""
        accounted = measured = 0
        for process, path in processes.items():
            private = _private_bytes(process)
            if process.pid in ledger and private:
                weights = self._weights[path]
                is_repacked = private >= weights.repacked_bytes
                account = ledger[process.pid]
                self._held[path].append(account.held_bytes)
                accounted += account.held_bytes + account.closed_bytes
                measured += private + _untouched_bytes(process, account.untouched)
                measured += weights.all_bytes - (weights.repacked_bytes if is_repacked else 0)
        if measured:
            self._errors.append(accounted / measured - 1)

    def _model_processes(self) -> dict[psutil.Process, str]:
        """With the file that each one maps."""
        found = []
        for root in self._roots:
            with contextlib.suppress(psutil.Error):
                found += psutil.Process(root).children(recursive=True)
        with_model = {}
        for process in found:
            with contextlib.suppress(psutil.Error, OSError):
                maps = Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
                names = (line.rpartition(" ")[2] for line in maps.splitlines())
                if (path := next((name for name in names if name in self._weights), None)) is not None:
                    with_model[process] = path
                    self._seen.add((process.pid, process.create_time()))
        return with_model


def _private_bytes(process: psutil.Process) -> int:
    """RssAnon of /proc/PID/status, which costs nothing to read; smaps would stop a runner for milliseconds."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _untouched_bytes(process: psutil.Process, ranges: list[AddressRange]) -> int:
    with contextlib.suppress(OSError):
        return untouched_bytes(Path("/proc"), process.pid, ranges)
    return 0
