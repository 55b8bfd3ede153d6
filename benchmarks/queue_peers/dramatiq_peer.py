"""dramatiq with its Redis broker: one worker process with threads."""

from __future__ import annotations

from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.queue_peers import tally

NAME = "dramatiq"
WORKER = (
    *("dramatiq", "benchmarks.queue_peers.dramatiq_peer", "--processes", "1", "--threads", str(tally.IN_FLIGHT)),
    "--skip-logging",
)

dramatiq.set_broker(RedisBroker(url=tally.url()))


@dramatiq.actor(max_retries=0)
def count(payload: str) -> None:
    tally.count(payload)


def produce(texts: Sequence[str]) -> None:
    for text in texts:
        count.send(text)
