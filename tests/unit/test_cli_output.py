"""What `keepwarm up` does with words that nobody can read any more: real terminals, pipes and a full device."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from app.cli.render import complain, forgive_lost_output, out, say, write_text


def closed_terminal() -> TextIO:
    ours, theirs = pty.openpty()
    file = os.fdopen(theirs, "w", buffering=1)
    os.close(ours)
    return file


def closed_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def full_disk() -> TextIO:
    return Path("/dev/full").open("w", buffering=1)


@pytest.mark.parametrize("make_file", [closed_terminal, closed_pipe, full_disk])
def test_words_that_cannot_be_written_end_nothing_once_they_may_be_lost(
    make_file: Callable[[], TextIO], monkeypatch: pytest.MonkeyPatch
):
    if make_file is full_disk and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    file = make_file()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(sys, "stderr", file)
    with pytest.raises(OSError, match="Errno"):
        os.write(file.fileno(), b"Stopping.")
    forgive_lost_output()
    say("Stopping.")
    complain("The API ended.")
    write_text("an answer")
    with out.status("waiting for api"):
        say("  store ready")


def test_words_still_arrive_and_a_terminal_is_still_known_as_one(monkeypatch: pytest.MonkeyPatch):
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs, "w", buffering=1) as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", file)
        forgive_lost_output()
        say("Keepwarm is up.")
        assert terminal.read(100).strip() == b"Keepwarm is up."
        assert sys.stdout.isatty()


def test_a_program_without_standard_output_can_write_to_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    forgive_lost_output()
    say("Keepwarm is up.")
    complain("The API ended.")
    write_text("an answer")
