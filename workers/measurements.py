"""What earlier runners really took: bytes and load times per file, settings and device, kept over restarts as JSON.

A measured figure beats the formula the next time. Bytes only ever grow, because a runner that is measured early has
not touched all of its memory yet; a changed file or setting is another key and starts over.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import msgspec
import structlog

from tasks.fleet import ModelKind

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
    """Thread-safe. A file that can't be read or written costs precision, never the worker."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries = {entry.key: entry for entry in _read(path)}

    def get(self, key: MeasurementKey) -> Measurement | None:
        with self._lock:
            return self._entries.get(key)

    def record(
        self, key: MeasurementKey, *, measured_bytes: int, load_ms: int | None = None, estimated_bytes: int = 0
    ) -> None:
        """Keep the larger figure of bytes, the newest load time (None: no load was timed), and the first estimate."""
        with self._lock:
            known = self._entries.pop(key, None)
            entry = Measurement(
                key=key,
                bytes=max(measured_bytes, known.bytes if known else 0),
                load_ms=load_ms if load_ms is not None else (known.load_ms if known else 0),
                estimated_bytes=known.estimated_bytes if known else estimated_bytes,
            )
            self._entries[key] = entry  # at the end: the newest
            while len(self._entries) > MAX_ENTRIES:
                self._entries.pop(next(iter(self._entries)))
            if entry != known:
                self._write()

    def _write(self) -> None:
        try:
            replace_file(self._path, msgspec.json.format(msgspec.json.encode(list(self._entries.values()))))
        except OSError as error:
            log.warning("measurements_not_saved", path=str(self._path), error=str(error))


def replace_file(path: Path, content: bytes) -> None:
    """Write so that a reader, or a crash, sees the old content or the new one, never a part. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> list[Measurement]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Measurement])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("measurements_ignored", path=str(path), error=str(error))
        return []
