"""`python -m tasks.controller`: a Celery worker on the queue `control` with its own beat.

Any number may run on any host; a leadership lease lets one of them act.
"""

from __future__ import annotations

from celery.beat import EmbeddedService

from tasks.celery_app import PLAN, app
from tasks.environment import warn_of_unknown_settings
from tasks.lifeline import exit_when_parent_dies
from tasks.logs import configure_logs
from tasks.process_name import process_name
from tasks.routing import CONTROL_QUEUE

TICK_S = 0.5


def main() -> None:
    configure_logs()
    warn_of_unknown_settings()
    exit_when_parent_dies()
    app.conf.beat_schedule = {
        "tick": {
            "task": PLAN,
            "schedule": TICK_S,
            # A tick that waited for longer than one period is as good as the next one.
            "options": {"queue": CONTROL_QUEUE, "expires": 2 * TICK_S, "priority": 0},
        }
    }
    # As a thread: Celery's own `beat=True` makes a process, which outlives a killed controller and ticks on for ever.
    # The schedule is constant, so the scheduler keeps nothing on disk.
    EmbeddedService(app, thread=True, scheduler_cls="celery.beat:Scheduler").start()
    app.Worker(
        hostname=f"controller@{process_name()}",
        pool="solo",
        queues=[CONTROL_QUEUE],
        loglevel="WARNING",
        without_mingle=True,
        without_gossip=True,
    ).start()


if __name__ == "__main__":
    main()
