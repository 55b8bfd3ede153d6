"""A file for words that may get lost."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TextIO


class ForgivingFile:
    """A file that loses what can't be written: a full disk or a reader that is gone must not end what is told about.
    Python's logging does the same."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        """Whether it is a terminal and the like."""
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._file.flush()
