"""The Celery side of a worker: a threads pool, a private queue, and the bootstep that ties its consumer to the pool."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.signals import worker_shutting_down

from tasks.jobs import WorkerId
from tasks.routing import worker_queue
from workers.subscriptions import CeleryQueues
from workers.task_events import UnhurriedEvents

# Threads are only a place to wait: how many jobs run is decided by the slots of ready runners. A thread is made
# when first needed; 256 is also llama.cpp's limit of sequences in one context.
TASK_THREADS = 256


def run_celery_worker(
    app: Celery, worker_id: WorkerId, queues: CeleryQueues, *, on_shutdown: Callable[[], None]
) -> None:
    """Consume until SIGTERM or SIGINT; returns when every started task has ended.

    `on_shutdown` runs in a thread of its own at the first signal: it must bring the running tasks to an end, since
    Celery waits for its threads without bound."""

    class PoolSubscriptions(bootsteps.StartStopStep):  # type: ignore[misc]
        """After each (re)connect the new consumer gets the subscriptions of the warm models."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            queues.attach(parent)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def _drain(**_: object) -> None:
        threading.Thread(target=on_shutdown, name="drain", daemon=True).start()

    app.steps["consumer"] |= {PoolSubscriptions, UnhurriedEvents}
    app.conf.broker_transport_options["queue_order_strategy"] = "workers.slot_gate:GatedCycle"
    app.Worker(
        hostname=f"worker@{worker_id}",
        pool="threads",
        concurrency=TASK_THREADS,
        queues=[worker_queue(worker_id)],
        loglevel="WARNING",
        without_mingle=True,
        without_gossip=True,
    ).start()
