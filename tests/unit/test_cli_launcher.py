"""How the processes of `keepwarm up` are started: real ones that end at once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import psutil
import pytest

from app.cli.launcher import LogFolderLauncher
from app.cli.processes import ProcessSpec, StopRank


@pytest.fixture
def launcher(tmp_path: Path) -> LogFolderLauncher:
    return LogFolderLauncher(tmp_path / "logs")


def run(launcher: LogFolderLauncher, code: str) -> None:
    argv = (sys.executable, "-c", code)
    process = launcher.launch(ProcessSpec(name="api", argv=argv, stop_rank=StopRank.FRONT, stop_bound_s=1))
    psutil.Process(process.pid).wait(30)
    process.kill()


def test_a_folder_of_logs_that_was_removed_is_made_again(launcher: LogFolderLauncher):
    run(launcher, "print(1)")
    shutil.rmtree(launcher.folder)
    run(launcher, "print(2)")
    assert launcher.log_path("api").read_text() == "2\n"


def test_output_is_appended_wherever_the_log_ends_by_then(launcher: LogFolderLauncher):
    """Or a log that was emptied would begin with a hole."""
    run(launcher, f"print(1, flush=True); import os; os.truncate({str(launcher.log_path('api'))!r}, 0); print(2)")
    assert launcher.log_path("api").read_text() == "2\n"


def test_the_first_start_of_a_run_keeps_the_log_of_the_run_before(launcher: LogFolderLauncher):
    run(launcher, "print(1)")
    run(LogFolderLauncher(launcher.folder), "print(2)")
    assert launcher.log_path("api").with_suffix(".log.1").read_text() == "1\n"
    assert launcher.log_path("api").read_text() == "2\n"
