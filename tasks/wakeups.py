"""Send the Celery messages of the project: wake-ups of jobs and batches, and nudges.

All of them are disposable: a lost one is made up for by the controller's tick, a second one finds nothing to do.

The wake-up of a new job is pushed by the very script that admits it. Celery and kombu word one message per queue and
priority; from then on only the ids in it change, which costs a hundredth of wording it anew.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from tasks.broker import diverted
from tasks.celery_app import BATCH, GENERATE, PLAN, SWEEP_FILES
from tasks.jobs import JobId, Priority
from tasks.routing import BATCH_QUEUE, CONTROL_QUEUE, model_queue

NUDGE_INTERVAL_S = 0.05  # at most one nudge per process in this time
NUDGE_EXPIRES_S = 2  # a nudge older than this is as good as the next tick
_ANY_JOB = JobId("job_" + "0" * 30)
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A wake-up as kombu would send it: `message` is pushed to the left of the Redis list `list_key`."""

    list_key: str
    message: str


class Wakeups:
    def __init__(self, celery_app: Celery, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = celery_app
        self._clock = clock
        self._nudged_at = -NUDGE_INTERVAL_S
        self._templates: dict[tuple[str, Priority], _Template] = {}

    def envelope(self, job_id: JobId, model: str, priority: Priority) -> Envelope | None:
        """The wake-up of a job that is about to be admitted; None when the broker can't be reached."""
        template = self._templates.get((model, priority))
        if template is None:
            with diverted() as messages:
                self.wake(_ANY_JOB, model, priority)
            if not messages:
                return None
            template = self._templates[model, priority] = _Template(*messages[0])
        return template.filled(job_id)

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

    def feed(self, batch_id: str) -> None:
        """Have some batcher feed the batch."""
        self._send(BATCH, args=(batch_id,), queue=BATCH_QUEUE, priority=0, argsrepr=f"('{batch_id}',)")

    def sweep_files(self, expires_s: int) -> None:
        """Have some batcher delete what has expired."""
        self._send(SWEEP_FILES, queue=BATCH_QUEUE, priority=0, expires=expires_s)

    def nudge_controller(self) -> None:
        """Ask for a plan now instead of at the next tick."""
        now = self._clock()
        if now - self._nudged_at < NUDGE_INTERVAL_S:
            return
        self._nudged_at = now
        self._send(PLAN, queue=CONTROL_QUEUE, expires=NUDGE_EXPIRES_S, priority=0)

    def _send(self, task: str, **options: object) -> None:
        try:
            self._app.send_task(task, retry=False, **options)
        except (OperationalError, OSError) as error:
            # The record is written; the controller sends the wake-up again once the store is back.
            _log.warning("wakeup_not_sent", task=task, error=str(error))


class _Template:
    """A message of which only the ids change: those of the job, of the Celery task, and of the delivery."""

    def __init__(self, list_key: str, message: str) -> None:
        parts = json.loads(message)
        self._list_key = list_key
        self._body = base64.b64decode(parts["body"]).decode()
        self._task_id = parts["headers"]["id"]
        self._delivery_tag = parts["properties"]["delivery_tag"]
        self._message = json.dumps(parts | {"body": ""})

    def filled(self, job_id: JobId) -> Envelope:
        body = base64.b64encode(self._body.replace(_ANY_JOB, job_id).encode()).decode()
        message = (
            self._message.replace('"body": ""', f'"body": "{body}"', 1)
            .replace(_ANY_JOB, job_id)
            .replace(self._task_id, str(uuid.uuid4()))
            .replace(self._delivery_tag, str(uuid.uuid4()))
        )
        return Envelope(self._list_key, message)
