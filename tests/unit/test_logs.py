"""What a line of the log looks like, of ours and of libraries."""

from __future__ import annotations

import errno
import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from tasks.logs import configure_logs


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    written = io.StringIO()
    with written_to(written, monkeypatch):
        yield written


@contextmanager
def written_to(file: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "stderr", file)
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    configure_logs()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**before)


def test_an_event_is_one_line_with_its_values_by_name(written: io.StringIO):
    structlog.get_logger("app").info("job_ended", state="succeeded", reason="end of\nstream", attempt=2, worker=None)
    line = written.getvalue()
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)
    assert rest == "[info     ] job_ended attempt=2 reason='end of\\nstream' state=succeeded worker=None\n"


def test_debug_events_are_left_out(written: io.StringIO):
    structlog.get_logger("app").debug("detail")
    assert written.getvalue() == ""


class FullDisk(io.StringIO):
    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_log_that_can_not_be_written_breaks_nothing_and_goes_on_when_it_can(monkeypatch: pytest.MonkeyPatch):
    disk = FullDisk()
    with written_to(disk, monkeypatch):
        log = structlog.get_logger("app")
        disk.is_full = True
        log.info("lost")
        disk.is_full = False
        log.info("kept")
        assert disk.getvalue().endswith(" kept\n") and "lost" not in disk.getvalue()
        disk.close()
        log.info("lost")


def test_a_traceback_follows_without_local_variables(written: io.StringIO):
    prompt = "a secret"
    try:
        raise ValueError(len(prompt))
    except ValueError as error:
        structlog.get_logger("app").exception("it_broke", job="j")
        structlog.get_logger("app").warning("it_broke_before", exc_info=error)
    text = written.getvalue()
    assert "[error    ] it_broke job=j\n  Traceback" in text
    assert "[warning  ] it_broke_before\n  Traceback" in text
    assert text.count("ValueError: 8\n") == 2
    assert "a secret" not in text


def test_warnings_of_libraries_look_the_same_and_their_chatter_is_left_out(written: io.StringIO):
    logging.getLogger("some.library").info("busy")
    logging.getLogger("some.library").warning("lost %s", "it")
    line = written.getvalue()
    assert line.endswith("[warning  ] lost it\n")
    assert line.count("\n") == 1


FORGED = "2026-01-01T00:00:00.000000Z [info     ] request status=200"


@pytest.mark.parametrize("text", [f"a\n{FORGED}", f"a\r{FORGED}", f"a\u2028{FORGED}", "a\x1b[2J", "a\ud800"])
def test_no_text_begins_a_line_or_steers_a_terminal(written: io.StringIO, text: str):
    def complain() -> None:
        raise ValueError(text)

    structlog.get_logger("app").info("told", why=text, all=[text])
    logging.getLogger("some.library").warning("lost %s", text)
    try:
        complain()
    except ValueError as error:
        structlog.get_logger("app").exception("it_broke")
        structlog.get_logger("app").error("it_broke_there", exception=f"ValueError: {error}")
    lines = written.getvalue().split("\n")
    assert all(line.isprintable() for line in lines)
    events = [line.partition("] ")[2].split(" ")[0] for line in lines if line.startswith("20")]
    assert events == ["told", "lost", "it_broke", "it_broke_there"]
    assert not any(line.startswith(FORGED) for line in lines)


class Wordless:
    def __repr__(self) -> str:
        raise RuntimeError


def test_value_that_can_not_be_worded_is_named_by_its_type(written: io.StringIO):
    structlog.get_logger("app").info("told", what=Wordless())
    assert written.getvalue().endswith("told what=<Wordless>\n")
