"""Where a load's bytes would come from, how quick loads from there were, and what to read ahead of them.

The page cache belongs to the kernel: what lies there is looked at now and then, in a thread of its own, and so is the
wish of the controller to have some models read ahead. All of it only ever makes a forecast better or a load quicker.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from workers.page_cache import is_cached, read_through

log = structlog.get_logger(__name__)

DISK, PAGE_CACHE = "disk", "page_cache"
LOOK_S = 5.0
REMEMBERED_LOADS = 32
FEWEST_LOADS = 3  # before a bandwidth is believed
FEWEST_MS = 50  # beyond the quickest load, in all
PAUSE_S = 0.1  # between two looks at whether a load is over
MAX_PAUSES = 50  # then what is read ahead has to wait for the next look at all files: forecasts need that


class Weights(Protocol):
    """A model's file, as `workers.model_files.ModelFile` has it."""

    @property
    def id(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def file_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Load:
    tier: str
    file_bytes: int
    load_ms: int


@dataclass(frozen=True, slots=True)
class LoadSpeed:
    """`init_ms` passes in any load, the rest is bytes / bandwidth of the tier (bytes per second)."""

    init_ms: int = 0
    bandwidths: tuple[tuple[str, int], ...] = ()


def load_speed(loads: Iterable[Load]) -> LoadSpeed:
    """From timed loads: the quickest one is taken for what a load costs without its bytes. Pure."""
    known = list(loads)
    if len(known) < FEWEST_LOADS:
        return LoadSpeed()
    init_ms = min(load.load_ms for load in known)
    bandwidths = []
    for tier in sorted({load.tier for load in known}):
        of_tier = [load for load in known if load.tier == tier]
        beyond_ms = sum(load.load_ms - init_ms for load in of_tier)
        if len(of_tier) >= FEWEST_LOADS and beyond_ms >= FEWEST_MS:
            bandwidths.append((tier, sum(load.file_bytes for load in of_tier) * 1000 // beyond_ms))
    return LoadSpeed(init_ms, tuple(bandwidths))


class Tiers:
    """Thread-safe. `models` gives what the worker can serve at the moment, `idle_bytes` what the page cache may take:
    a file that is larger would push out what it has read itself, and others with it. While `is_loading` nothing is
    read ahead: the disk is for those who wait.

    `maps_weights`: warm models live in the page cache themselves, as on a CPU. Then nothing is read ahead, which would
    push them out, so that the next answer reads them from the disk again; and what a warm model has there stays behind
    it only where there is memory for it and for the one that comes in its place."""

    def __init__(
        self,
        models: Callable[[], Sequence[Weights]],
        idle_bytes: Callable[[], int],
        is_loading: Callable[[], bool] = lambda: False,
        *,
        maps_weights: bool = False,
    ) -> None:
        self._models = models
        self._idle_bytes = idle_bytes
        self._is_loading = is_loading
        self._maps_weights = maps_weights
        self._seen_idle_bytes = 0
        self._lock = threading.Lock()
        self._tiers: dict[str, str] = {}
        self._lasting: frozenset[str] = frozenset()  # models whose pages would stay if they left
        self._loads: deque[Load] = deque(maxlen=REMEMBERED_LOADS)
        self._wished: tuple[str, ...] = ()
        self._was_read: set[str] = set()  # for this wish; once is enough, also where the page cache can't hold it
        self._stopping = threading.Event()
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tiers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._due.set()
        self._thread.join(timeout=LOOK_S)

    def of(self, model: str, *, is_warm: bool = False) -> str | None:
        """`disk` or `page_cache`; None when it is not known. Of a warm model: if it left and came back."""
        with self._lock:
            tier = self._tiers.get(model)
            return DISK if is_warm and tier == PAGE_CACHE and model not in self._lasting else tier

    @property
    def cache_bytes(self) -> int:
        """Of files that the page cache can hold, as of the last look; 0 before the first one, and where nothing is
        read ahead."""
        with self._lock:
            return 0 if self._maps_weights else self._seen_idle_bytes

    def loaded(self, model: str, load_ms: int) -> None:
        """A load has worked; it counts for the tier that its file was seen in last, before the load read it."""
        file_bytes = next((each.file_bytes for each in self._models() if each.id == model), None)
        with self._lock:
            tier = self._tiers.get(model)
            if tier is not None and file_bytes is not None:
                self._loads.append(Load(tier, file_bytes, load_ms))

    def speed(self) -> LoadSpeed:
        with self._lock:
            return load_speed(self._loads)

    def prefetch(self, models: tuple[str, ...]) -> None:
        """Read these ahead, in this order, unless they are cached; replaces the wish before."""
        with self._lock:
            is_news = models != self._wished
            self._wished = models
            self._was_read &= set(models)
        if is_news:
            self._due.set()

    def look(self) -> None:
        """One look at all files, then the wished ones are read ahead, for as long as loads leave the disk to that."""
        models = {each.id: each for each in self._models()}
        found = {each.id: _tier(each.path) for each in models.values()}
        idle_bytes = _coarse(self._idle_bytes())
        with self._lock:
            self._seen_idle_bytes = idle_bytes
            self._tiers = {model: tier for model, tier in found.items() if tier is not None}
            self._lasting = frozenset(
                each.id for each in models.values() if not self._maps_weights or each.file_bytes <= idle_bytes
            )
            if self._maps_weights:
                return
            wished = [model for model in self._wished if model not in self._was_read]
        for model in wished:
            is_readable = found.get(model) == DISK and models[model].file_bytes <= self._idle_bytes()
            if is_readable and not self._read(models[model]):
                return

    def _read(self, model: Weights) -> bool:
        """False when it was given up, and all others with it."""

        def goes_on(_share: float) -> bool:
            for _ in range(MAX_PAUSES):
                if not self._is_loading() or self._stopping.wait(PAUSE_S):
                    break
            else:
                return False
            with self._lock:
                return model.id in self._wished and not self._stopping.is_set()

        try:
            is_whole = read_through(model.path, goes_on)
        except OSError as error:
            log.warning("read_ahead_failed", model=model.id, reason=str(error))
            return True
        if is_whole:
            with self._lock:
                self._was_read.add(model.id)
        log.info("read_ahead", model=model.id, bytes=model.file_bytes, is_whole=is_whole)
        return is_whole

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.clear()
            try:
                self.look()
            except Exception:
                log.exception("tiers_failed")  # forecasts get worse, nothing else
            self._due.wait(LOOK_S)


def disk_of(path: Path) -> int | None:
    """The disk that a load of this file would read from, as the system numbers it; None where it would read none, or
    that can't be told."""
    if _tier(path) != DISK:
        return None
    with suppress(OSError):  # just removed
        return path.stat().st_dev
    return None


def _coarse(count: int) -> int:
    """Four leading bits: what is free never stands still, and news cost a look at the worker."""
    shift = max(0, count.bit_length() - 4)
    return count >> shift << shift


def _tier(path: Path) -> str | None:
    try:
        cached = is_cached(path)
    except OSError:  # just removed
        return None
    if cached is None:
        return None
    return PAGE_CACHE if cached else DISK
