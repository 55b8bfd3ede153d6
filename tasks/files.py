"""Files that clients upload and that batches write: their record. The content lies elsewhere. Pure."""

from __future__ import annotations

import hashlib
import secrets

import msgspec

BATCH_INPUT, BATCH_OUTPUT = "batch", "batch_output"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """Times are integer milliseconds of the store's clock."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_ms: int
    expires_ms: int


def new_file_id() -> str:
    """`file-` and 120 random bits, so that an id can't be guessed."""
    return "file-" + secrets.token_hex(15)


def output_file_id(batch_id: str, kind: str) -> str:
    """Of a batch's output or error file; the same on every call, so that a repeated end writes no second file."""
    return "file-" + hashlib.sha256(f"{kind} of {batch_id}".encode()).hexdigest()[:30]
