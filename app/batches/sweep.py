"""Delete what nobody may read any more: expired files, results of batches that have ended, what a crash left behind."""

from __future__ import annotations

import structlog

from app.batches.contents import content_path
from app.batches.surroundings import Surroundings

AT_ONCE = 1000
STALE_S = 24 * 3600.0  # no upload takes longer, and no file waits for longer for its record

_log = structlog.get_logger(__name__)


def sweep_expired(around: Surroundings, *, now_s: float) -> None:
    """Safe to repeat and to run twice at once. An input file lives for as long as its batch is open."""
    in_use = around.batches.open_input_files()
    for file_id in around.files.expired(AT_ONCE):
        if file_id not in in_use:
            around.files.remove(file_id)
            around.contents.delete(content_path(file_id))
            _log.info("file_expired", file_id=file_id)
    for batch_id in around.contents.names("batches"):
        if not around.batches.is_open(batch_id):
            around.contents.delete(f"batches/{batch_id}")
    stray = [f"uploads/{name}" for name in around.contents.names("uploads")]
    stray += [content_path(name) for name in around.files.without_record(around.contents.names("files"))]
    for path in stray:
        if around.contents.is_older(path, STALE_S, now_s):
            around.contents.delete(path)
