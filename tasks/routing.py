"""Names of Celery queues. Pure. A model's queue exists only for ids from the registry, never for a client's string."""

from __future__ import annotations

from tasks.jobs import WorkerId

CONTROL_QUEUE = "control"
BATCH_QUEUE = "batch"
_MODEL_PREFIX = "model."
_WORKER_PREFIX = "worker."
DOORBELL = "{}"  # what rings in a worker's private queue; nothing else is ever sent there


def model_queue(model_id: str) -> str:
    """The queue of a model's wake-ups; the prefix keeps a model called `control` from taking the controller's."""
    return _MODEL_PREFIX + model_id


def model_of_queue(queue: str) -> str | None:
    return queue.removeprefix(_MODEL_PREFIX) if queue.startswith(_MODEL_PREFIX) else None


def is_worker_queue(queue: str) -> bool:
    return queue.startswith(_WORKER_PREFIX)


def worker_queue(worker_id: WorkerId) -> str:
    """A worker's private queue, which every pop of its names: a message there ends the pop in flight."""
    return _WORKER_PREFIX + worker_id
