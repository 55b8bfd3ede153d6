"""Structured logs for every process: event names and ids, never a prompt.

One line per event on stderr, `time [level    ] event key=value …`. Events of ours are worded right here, because a job
writes three lines and Python's logging takes as long for a line as the store for a job's step; records of libraries
come through that and look the same. Whatever a text holds, it neither begins another line nor steers a terminal.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from tasks.forgiving_file import ForgivingFile


def configure_logs(level: int = logging.INFO) -> None:
    """Events of ours from `level` on, and warnings of libraries."""
    structlog.configure(
        processors=[_line],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, ForgivingFile(sys.stderr))),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RecordFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _line(_: WrappedLogger, level: str, fields: EventDict) -> str:
    """The last of structlog's processors. A traceback follows on indented lines of its own."""
    exc_info = fields.pop("exc_info", None)
    if isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    elif exc_info and not isinstance(exc_info, tuple):
        exc_info = sys.exc_info()
    # Without locals, as Python words it: they hold prompts.
    traceback = logging.Formatter().formatException(exc_info) if exc_info else str(fields.pop("exception", ""))
    time = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    head = f"{time}Z [{level:<9}] {_printable(str(fields.pop('event')))}"
    values = [f"{name}={_word(value)}" for name, value in sorted(fields.items())]
    lines = [f"  {_printable(line)}" for line in traceback.rstrip("\n").split("\n")] if traceback else []
    return "\n".join((" ".join((head, *values)), *lines))


def _word(value: object) -> str:
    """Text as it is where a reader can tell its end, else quoted."""
    if isinstance(value, str) and value.isprintable() and _SPECIAL.isdisjoint(value):
        return value
    try:
        return _printable(repr(value))
    except Exception:  # of whatever makes the value
        return f"<{type(value).__name__}>"


def _printable(text: str) -> str:
    """Line breaks, escapes and the like as Python writes them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


_SPECIAL = frozenset(" \"'=")


class _RecordFormatter(logging.Formatter):
    """Records of libraries in the same words."""

    def format(self, record: logging.LogRecord) -> str:
        return _line(None, record.levelname.lower(), {"event": record.getMessage(), "exc_info": record.exc_info})
