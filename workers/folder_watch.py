"""Follow changes of the models folder without a restart: new, changed and removed files, and models.yaml."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from tasks.errors import InvalidSetting
from workers.model_files import ModelFolder

log = structlog.get_logger(__name__)

LOOK_S = 2.0


class Scanner(Protocol):
    def fingerprint(self) -> str: ...

    def scan(self) -> ModelFolder: ...


class FolderWatch:
    """Looks at the folder now and then (network file systems tell of no changes) and hands over a new scan.

    A change counts when two looks in a row have seen the same, so that a file that is being copied is not loaded half.
    While models.yaml is wrong, the last good scan stays in force; the log says what is wrong, once, and `warnings` does
    until it is mended.
    """

    def __init__(self, scanner: Scanner, folder: ModelFolder, on_change: Callable[[ModelFolder], None]) -> None:
        """`folder`: the scan that is in force."""
        self._scanner = scanner
        self._on_change = on_change
        self._warnings = folder.warnings
        self._in_force = self._seen = scanner.fingerprint()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="folder-watch", daemon=True)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the folder, in sentences."""
        return self._warnings

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=LOOK_S)

    def look(self) -> None:
        """One look; every LOOK_S seconds is often enough."""
        before, self._seen = self._seen, self._scanner.fingerprint()
        if self._seen == self._in_force or self._seen != before:
            return
        try:
            folder = self._scanner.scan()
        except InvalidSetting as error:
            self._in_force = self._seen  # seen, and wrong: no second look before it changes
            self._warnings = (f"The folder's last change does not count: {error}",)
            log.error("models_not_reloaded", reason=str(error))
            return
        log.info(
            "models_reloaded",
            num_models=len(folder.models),
            unusable=[file.id for file in folder.unusable],
            unmatched=folder.unmatched,
        )
        self._on_change(folder)
        self._warnings = folder.warnings
        self._in_force = self._seen

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                self.look()
            except Exception:
                log.exception("folder_look_failed")  # the next one may work
