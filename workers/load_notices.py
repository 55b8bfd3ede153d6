"""Tell the clients whose jobs wait for a model how far its load has come."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.fleet import RunnerReport, RunnerState
from tasks.store.backlog_store import BacklogStore
from tasks.store.token_writer import TokenWriter
from tasks.stream_events import Loading

AUDIENCE = 100  # jobs per model that are told; the others are far from their turn


class LoadNotices:
    def __init__(self, backlog: BacklogStore, writer: TokenWriter) -> None:
        self._backlog = backlog
        self._writer = writer
        self._told: dict[int, float] = {}  # pid → progress

    def send(self, runners: Iterable[RunnerReport]) -> None:
        """One notice per waiting job whenever a load has moved. Raises StoreUnavailable."""
        starting = [runner for runner in runners if runner.state is RunnerState.STARTING]
        for runner in starting:
            if self._told.get(runner.pid) == runner.progress:
                continue
            for model in (runner.model, *runner.adapters):
                waiting = self._backlog.waiting(model, AUDIENCE)
                if waiting:
                    self._writer.notify(waiting, Loading(model=model, progress=round(runner.progress, 2)))
        self._told = {runner.pid: runner.progress for runner in starting}
