"""Send the Celery messages of the project: wake-ups of jobs, nudges of the controller, doorbells of workers.

All three are disposable: a lost one is made up for by the controller's tick, a second one finds nothing to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from tasks.celery_app import DOORBELL, GENERATE, PLAN
from tasks.jobs import JobId, Priority, WorkerId
from tasks.routing import CONTROL_QUEUE, model_queue, worker_queue

NUDGE_INTERVAL_S = 0.05  # at most one nudge per process in this time
NUDGE_EXPIRES_S = 2  # a nudge older than this is as good as the next tick
_log = structlog.get_logger(__name__)


class Wakeups:
    def __init__(self, celery_app: Celery, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = celery_app
        self._clock = clock
        self._nudged_at = -NUDGE_INTERVAL_S

    def wake(self, job_id: JobId, model: str, priority: Priority) -> None:
        """Put the job's id into its model's queue; monitors see the task as `generate:<model>`."""
        self._send(
            GENERATE,
            args=(job_id,),
            queue=model_queue(model),
            priority=int(priority),
            shadow=f"generate:{model}",
            argsrepr=f"('{job_id}',)",
        )

    def nudge_controller(self) -> None:
        """Ask for a plan now instead of at the next tick."""
        now = self._clock()
        if now - self._nudged_at < NUDGE_INTERVAL_S:
            return
        self._nudged_at = now
        self._send(PLAN, queue=CONTROL_QUEUE, expires=NUDGE_EXPIRES_S, priority=0)

    def ring(self, worker_id: WorkerId) -> None:
        """Wake a worker's blocked pop, so that it looks at its changed subscriptions."""
        self._send(DOORBELL, queue=worker_queue(worker_id), expires=NUDGE_EXPIRES_S, priority=0)

    def _send(self, task: str, **options: object) -> None:
        try:
            self._app.send_task(task, retry=False, **options)
        except (OperationalError, OSError) as error:
            # The record is written; the controller sends the wake-up again once the store is back.
            _log.warning("wakeup_not_sent", task=task, error=str(error))
