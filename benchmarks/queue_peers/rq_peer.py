"""RQ with the worker that runs jobs in its own process, one after another (its usual one forks for each)."""

from __future__ import annotations

from collections.abc import Sequence

from rq import Queue

from benchmarks.queue_peers import tally

NAME = "rq"
WORKER = ("benchmarks.queue_peers.rq_worker",)


def produce(texts: Sequence[str]) -> None:
    queue = Queue("bench", connection=tally.client())
    for text in texts:
        queue.enqueue(tally.count, text, result_ttl=0)
