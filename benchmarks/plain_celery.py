"""The peer of the recovery benchmark: a Celery task that streams tokens into a Redis Stream, late ack, nothing else.

Run as a Celery app: `celery -A benchmarks.plain_celery worker`; PEER_BROKER and PEER_VISIBILITY_S configure it. It is
set up as its users are told to: late ack, requeue when a pool process dies, prefetch of one.
"""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

TOKEN_S = 0.02
STORE_URL = os.environ.get("PEER_STORE", "")

app = Celery("peer", broker=os.environ.get("PEER_BROKER", "redis://"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)
if visibility_s := os.environ.get("PEER_VISIBILITY_S"):
    app.conf.broker_transport_options = {"visibility_timeout": int(visibility_s)}


@app.task(name="peer.generate")
def generate(job_id: str, num_tokens: int) -> None:
    """One entry per token, then one that ends the stream."""
    client = redis.Redis.from_url(STORE_URL)
    client.xadd(f"peer:{job_id}", {"pid": os.getpid(), "starts": 1})
    for number in range(1, num_tokens + 1):
        client.xadd(f"peer:{job_id}", {"token": number})
        time.sleep(TOKEN_S)
    client.xadd(f"peer:{job_id}", {"end": 1})
