"""arq: one asyncio worker, no results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from arq import create_pool, func
from arq.connections import RedisSettings

from benchmarks.queue_peers import tally
from benchmarks.queue_peers.in_flight import send_all

NAME = "arq"
WORKER = ("arq", "benchmarks.queue_peers.arq_peer.WorkerSettings")

_SETTINGS = RedisSettings(unix_socket_path=tally.SOCKET, database=tally.DATABASE)


async def count(context: dict[Any, Any], payload: str) -> None:
    tally.count(payload)


class WorkerSettings:
    functions: ClassVar = [func(count, name="count", keep_result=0, max_tries=1)]
    redis_settings = _SETTINGS
    max_jobs = tally.IN_FLIGHT
    poll_delay = 0.01  # its default of half a second fetches at most `max_jobs` jobs at a time


def produce(texts: Sequence[str]) -> None:
    async def send() -> None:
        pool = await create_pool(_SETTINGS)
        await send_all(texts, lambda text: pool.enqueue_job("count", text))
        await pool.aclose()

    asyncio.run(send())
