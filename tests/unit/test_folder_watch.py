"""The folder watch against a scripted scanner: when a change counts, and what a wrong models.yaml does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import InvalidSetting
from workers.folder_watch import FolderWatch
from workers.model_files import ModelFolder, UnusableFile
from workers.model_folder import FolderScanner
from workers.models_yaml import MODELS_YAML


class ScriptedScanner:
    def __init__(self) -> None:
        self.print = "a"
        self.error: Exception | None = None
        self.num_scans = 0

    def fingerprint(self) -> str:
        return self.print

    def scan(self) -> ModelFolder:
        self.num_scans += 1
        if self.error:
            raise self.error
        return folder_named(self.print)


def folder_named(name: str) -> ModelFolder:
    return ModelFolder(unusable=(UnusableFile(id=name, path=Path(name), file_bytes=0, reason=""),))


def watched() -> tuple[ScriptedScanner, FolderWatch, list[ModelFolder]]:
    scanner, found = ScriptedScanner(), list[ModelFolder]()
    return scanner, FolderWatch(scanner, ModelFolder(), found.append), found


def test_change_counts_when_two_looks_agree() -> None:
    scanner, watch, found = watched()
    for seen in ("a", "b", "bb", "bbb"):  # a file that grows
        scanner.print = seen
        watch.look()
    assert found == []
    watch.look()
    assert found == [folder_named("bbb")]
    watch.look()
    assert scanner.num_scans == 1


def test_wrong_settings_leave_the_last_good_scan_in_force_until_they_change() -> None:
    scanner, watch, found = watched()
    scanner.print, scanner.error = "wrong", InvalidSetting("models.yaml", "no")
    for _ in range(4):
        watch.look()
    assert found == []
    assert scanner.num_scans == 1
    assert watch.warnings == ("The folder's last change does not count: models.yaml: no",)
    scanner.print, scanner.error = "right", None
    watch.look()
    watch.look()
    assert found == [folder_named("right")]
    assert not watch.warnings


def test_scan_that_breaks_is_tried_again() -> None:
    scanner, watch, found = watched()
    scanner.print, scanner.error = "b", OSError("the file system is away")
    watch.look()
    with pytest.raises(OSError, match="away"):
        watch.look()
    scanner.error = None
    watch.look()
    assert found == [folder_named("b")]


def test_fingerprint_follows_files_and_settings(tmp_path: Path) -> None:
    scanner = FolderScanner(tmp_path, default_slots=1)
    seen = [scanner.fingerprint()]
    (tmp_path / "one.gguf").write_bytes(b"1")
    seen.append(scanner.fingerprint())
    (tmp_path / "one.gguf").write_bytes(b"22")
    seen.append(scanner.fingerprint())
    (tmp_path / MODELS_YAML).write_text("models: {}")
    seen.append(scanner.fingerprint())
    assert len(set(seen)) == 4
    (tmp_path / "notes.txt").write_text("no model")
    assert scanner.fingerprint() == seen[-1]
