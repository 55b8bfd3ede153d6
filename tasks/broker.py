"""kombu's Redis transport with one client object per channel.

kombu makes a client anew for every message that it sends, which with redis-py 8 costs more than the sending. Imported
for its effect: from then on `redis://` and its relatives mean this transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis


class Channel(kombu_redis.Channel):
    _sender: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        if client is None:
            # A reconnect makes a new pool.
            if self._sender is None or self._sender.connection_pool is not self.pool:
                self._sender = self._create_client()  # type: ignore[no-untyped-call]
            client = self._sender
        yield client


class Transport(kombu_redis.Transport):
    Channel = Channel


TRANSPORT_ALIASES |= dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport")
