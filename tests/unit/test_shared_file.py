"""A file that several processes add to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.shared_file import FileHeld, replace_file, sole_writer

ADD_ONE = """
import sys
from pathlib import Path
from workers.shared_file import replace_file, sole_writer

path = Path(sys.argv[1])
for _ in range(20):
    with sole_writer(path):
        replace_file(path, path.read_bytes() + b"x")
"""


def test_nothing_that_several_processes_add_at_once_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with sole_writer(path):
        replace_file(path, b"")
        writers = [subprocess.Popen([sys.executable, "-c", ADD_ONE, str(path)]) for _ in range(3)]
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    assert path.read_bytes() == b"x" * 60


def test_writer_that_never_ends_is_named_and_keeps_nobody_waiting_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.shared_file.TURN_LIMIT_S", 0)
    path = tmp_path / "file"
    with (
        sole_writer(path),
        pytest.raises(FileHeld, match=rf"process {os.getpid()} on .* has kept the lock of {path}"),
        sole_writer(path),
    ):
        pass
    with sole_writer(path):
        replace_file(path, b"free again")
    assert path.read_bytes() == b"free again"


def test_failed_replacement_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "kept").write_text("")
    with pytest.raises(OSError, match="folder"):
        replace_file(target, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
