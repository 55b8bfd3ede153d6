"""`python -m app.batches`: a batcher, a Celery worker on the queue `batch`, and beside it a deliverer of webhooks.

Any number may run. It is part of the front, and a process of its own: it words requests and answers as the routes do,
and a batch must neither slow a front's streams down nor end with it.
"""

from __future__ import annotations

import sys

from celery.signals import worker_shutting_down

from app.batches import doors
from app.settings import ApiSettings
from app.webhooks.thread import DelivererThread
from tasks.celery_app import app as celery_app
from tasks.environment import warn_of_unknown_settings
from tasks.errors import InvalidSetting
from tasks.lifeline import exit_when_parent_dies
from tasks.logs import configure_logs
from tasks.process_name import process_name
from tasks.routing import BATCH_QUEUE
from tasks.settings import StoreSettings, load_settings

BATCHES_AT_ONCE = 8  # per process; others wait in their queue


def main() -> int:
    exit_when_parent_dies()
    configure_logs()
    warn_of_unknown_settings()
    try:
        doors.surroundings()
        webhooks = DelivererThread(load_settings(ApiSettings), load_settings(StoreSettings))
    except InvalidSetting as error:
        print(error, file=sys.stderr)
        return 2

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def _stop(**_: object) -> None:
        doors.is_stopping.set()

    webhooks.start()
    celery_app.Worker(
        hostname=f"batcher@{process_name()}",
        pool="threads",
        concurrency=BATCHES_AT_ONCE,
        queues=[BATCH_QUEUE],
        loglevel="WARNING",
        without_mingle=True,
        without_gossip=True,
    ).start()
    webhooks.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
