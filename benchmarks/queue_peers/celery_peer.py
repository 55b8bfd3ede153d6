"""Bare Celery: a thread pool as Keepwarm's workers have, no results; all else as it comes."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from benchmarks.queue_peers import tally

NAME = "celery"
WORKER = (
    *("celery", "-A", "benchmarks.queue_peers.celery_peer", "worker", "--pool", "threads"),
    *("--concurrency", str(tally.IN_FLIGHT), "--loglevel", "ERROR"),
)

app = Celery("peer", broker=f"redis+socket://{tally.SOCKET}?virtual_host={tally.DATABASE}")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task(name="peer.count")
def count(payload: str) -> None:
    tally.count(payload)


def produce(texts: Sequence[str]) -> None:
    for text in texts:
        count.delay(text)
