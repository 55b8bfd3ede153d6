"""kombu's Redis transport with one client object per channel, with messages that can be had instead of sent, and with
a doorbell that is no Celery message.

kombu makes a client anew for every message that it sends, which with redis-py 8 costs more than the sending. Imported
for its effect: from then on `redis://` and its relatives mean this transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

from tasks.routing import is_worker_queue

Diverted = list[tuple[str, str]]  # (Redis list, message) as kombu would have pushed them

_diverted: ContextVar[Diverted | None] = ContextVar("diverted", default=None)


@contextmanager
def diverted() -> Iterator[Diverted]:
    """What this thread sends in here goes nowhere but into the list."""
    messages: Diverted = []
    token = _diverted.set(messages)
    try:
        yield messages
    finally:
        _diverted.reset(token)


class _Divertible(kombu_redis.Channel):
    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        if (messages := _diverted.get()) is None:
            super()._put(queue, message, **options)  # type: ignore[no-untyped-call]
        else:
            priority = self._get_message_priority(message, reverse=False)  # type: ignore[no-untyped-call]
            messages.append((self._q_for_pri(queue, priority), dumps(message)))  # type: ignore[no-untyped-call]


class Channel(_Divertible):
    _sender: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        if client is None:
            # A reconnect makes a new pool.
            if self._sender is None or self._sender.connection_pool is not self.pool:
                self._sender = self._create_client()  # type: ignore[no-untyped-call]
            client = self._sender
        yield client


class SentinelChannel(_Divertible, kombu_redis.SentinelChannel):
    pass


class _Doorbell(kombu_redis.Transport):
    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        """What comes from a worker's private queue has done its work: the pop has ended."""
        if not is_worker_queue(queue):
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]


class Transport(_Doorbell):
    Channel = Channel


class SentinelTransport(_Doorbell, kombu_redis.SentinelTransport):
    Channel = SentinelChannel


TRANSPORT_ALIASES |= dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport")
TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"
