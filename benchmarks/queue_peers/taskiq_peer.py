"""taskiq with the list broker of taskiq-redis: one worker process, no results, no acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from taskiq_redis import ListQueueBroker

from benchmarks.queue_peers import tally
from benchmarks.queue_peers.in_flight import send_all

NAME = "taskiq"
WORKER = (
    *("taskiq", "worker", "benchmarks.queue_peers.taskiq_peer:broker", "--workers", "1"),
    *("--max-async-tasks", str(tally.IN_FLIGHT), "--log-level", "ERROR"),
)

broker = ListQueueBroker(tally.url(), queue_name="bench-taskiq")


@broker.task(task_name="count")
async def count(payload: str) -> None:
    tally.count(payload)


def produce(texts: Sequence[str]) -> None:
    async def send() -> None:
        await broker.startup()
        await send_all(texts, count.kiq)
        await broker.shutdown()

    asyncio.run(send())
