"""How a job is to be admitted, beside what it asks for."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.answer_cache import CacheWish
from tasks.attachments import NOTHING, Attachments
from tasks.fleet import ModelOffer
from tasks.jobs import JobId, Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """From whoever takes a request in to `tasks.dispatch.Dispatcher.submit`."""

    offer: ModelOffer
    priority: Priority
    deadline_ms: int | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None  # what makes two bodies under one idempotency key equal
    job_id: JobId | None = None  # of the new job, drawn by a caller who listens to it already
    repeats: JobId | None = None  # the job that ended badly, whose request this is
    attached: Attachments = NOTHING
    wish: CacheWish | None = None  # what the cache may do; None: it is not asked
