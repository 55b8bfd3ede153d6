"""The blocking side of a worker's hint channel, on a connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import structlog

from tasks.errors import StoreUnavailable
from tasks.jobs import WorkerId
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import connect, store_errors

POLL_S = 1.0  # how often the wish to stop is looked at
RETRY_S = 0.5

_log = structlog.get_logger(__name__)


class HintListener:
    """Iterate over hints until `stop`; a lost connection is replaced, and what was said meanwhile is lost."""

    def __init__(self, settings: StoreSettings, worker_id: WorkerId) -> None:
        self._client = connect(settings)
        self._channel = keys.hints(worker_id)
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def __iter__(self) -> Iterator[str]:
        while not self._stopping.is_set():
            try:
                with store_errors():
                    yield from self._listen()
            except StoreUnavailable as error:
                _log.warning("hints_lost", error=str(error))
                self._stopping.wait(RETRY_S)

    def _listen(self) -> Iterator[str]:
        with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe(self._channel)
            while not self._stopping.is_set():
                message = pubsub.get_message(timeout=POLL_S)
                if message is not None:
                    yield message["data"].decode()
