"""Listen to a worker's hint channel: `placement` and `cancel <job>`. Hints may be lost; the records are the truth."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from tasks.jobs import JobId
from tasks.store.hint_listener import HintListener

log = structlog.get_logger(__name__)


class Hints:
    def __init__(
        self, listener: HintListener, *, on_placement: Callable[[], None], on_cancel: Callable[[JobId], object]
    ) -> None:
        self._listener = listener
        self._on_placement = on_placement
        self._on_cancel = on_cancel
        self._thread = threading.Thread(target=self._run, name="hints", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._listener.stop()

    def _run(self) -> None:
        for hint in self._listener:
            try:
                self._follow(hint)
            except Exception:  # the next hint is none the worse for it
                log.exception("hint_failed", hint=hint)

    def _follow(self, hint: str) -> None:
        match hint.split(" "):
            case ["placement"]:
                self._on_placement()
            case ["cancel", job_id]:
                self._on_cancel(JobId(job_id))
            case _:
                log.warning("hint_not_understood", hint=hint)
