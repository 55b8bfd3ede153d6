"""What earlier runners really took: bytes and load times per file, settings and device, kept over restarts as JSON.

A measured figure beats the formula the next time. Bytes only ever grow, because a runner that is measured early has
not touched all of its memory yet; a changed file or setting is another key and starts over.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import structlog

from tasks.fleet import ModelKind
from workers.shared_file import replace_file, sole_writer

log = structlog.get_logger(__name__)

MAX_ENTRIES = 2000  # oldest go first


class MeasurementKey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that changes what a model takes."""

    model: str
    file: str  # identity: size and modification time
    context_length: int
    slots: int
    kv_type: str
    device: str
    kind: ModelKind = ModelKind.GENERATE  # the defaults are those of files from before these were told apart
    pooling: str | None = None


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    key: MeasurementKey
    bytes: int
    load_ms: int
    estimated_bytes: int = 0  # what was expected before the first load

    @property
    def estimate_error(self) -> float | None:
        """Share by which the estimate was too high (positive) or too low."""
        return self.estimated_bytes / self.bytes - 1 if self.estimated_bytes and self.bytes else None


class Measurements:
    """Thread-safe. Workers of one home share the file, and see what others measured at each writing of their own. A
    file that can't be read or written costs precision, never the worker."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # of the file, which may take its time; taken before the other one
        self._entries = {entry.key: entry for entry in _read(path)}

    def get(self, key: MeasurementKey) -> Measurement | None:
        with self._lock:
            return self._entries.get(key)

    def record(
        self, key: MeasurementKey, *, measured_bytes: int, load_ms: int | None = None, estimated_bytes: int = 0
    ) -> None:
        """Keep the larger figure of bytes, the newest load time (None: no load was timed), and the first estimate."""
        entry = Measurement(key=key, bytes=measured_bytes, load_ms=load_ms or 0, estimated_bytes=estimated_bytes)
        with self._lock:
            known = self._entries.get(key)
            self._add(entry)
            has_changed = self._entries[key] != known
        if has_changed:
            self._write(entry)

    def _add(self, newest: Measurement) -> None:
        self._join(newest)
        self._entries[newest.key] = self._entries.pop(newest.key)  # at the end
        while len(self._entries) > MAX_ENTRIES:
            self._entries.pop(next(iter(self._entries)))

    def _join(self, entry: Measurement) -> None:
        known = self._entries.get(entry.key)
        if known is not None:
            entry = msgspec.structs.replace(
                entry,
                bytes=max(entry.bytes, known.bytes),
                load_ms=entry.load_ms or known.load_ms,
                estimated_bytes=known.estimated_bytes,
            )
        self._entries[entry.key] = entry

    def _join_all(self, written: list[Measurement]) -> None:
        """What others wrote down counts as older than what this process has seen: it may have dropped it itself."""
        new = {entry.key: entry for entry in written if entry.key not in self._entries}
        self._entries = new | self._entries
        for entry in written:
            self._join(entry)

    def _write(self, newest: Measurement) -> None:
        try:
            with self._writing, sole_writer(self._path):
                written = _read(self._path)
                with self._lock:
                    self._join_all(written)
                    self._add(newest)
                    entries = list(self._entries.values())
                replace_file(self._path, msgspec.json.format(msgspec.json.encode(entries)))
        except OSError as error:
            log.warning(
                "measurements_not_saved",
                path=str(self._path),
                error=str(error),
                now="the next measurement writes them all",
            )


def _read(path: Path) -> list[Measurement]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Measurement])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("measurements_ignored", path=str(path), error=str(error))
        return []
