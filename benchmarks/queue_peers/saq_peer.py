"""SAQ: one asyncio worker, no results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from saq import Queue
from saq.queue.redis import RedisQueue

from benchmarks.queue_peers import tally
from benchmarks.queue_peers.in_flight import send_all

NAME = "saq"
WORKER = ("saq", "benchmarks.queue_peers.saq_peer.settings", "--quiet")


def _queue() -> Queue:
    return RedisQueue(redis.asyncio.Redis.from_url(tally.url(), socket_timeout=None), name="bench")


async def count(context: dict[Any, Any], *, payload: str) -> None:
    tally.count(payload)


settings = {"queue": _queue(), "functions": [count], "concurrency": tally.IN_FLIGHT}


def produce(texts: Sequence[str]) -> None:
    async def send() -> None:
        queue = _queue()
        await queue.connect()
        await send_all(texts, lambda text: queue.enqueue("count", payload=text, ttl=-1))
        await queue.disconnect()

    asyncio.run(send())
