"""Which jobs a list is to hold, and a page of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.jobs import Job, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """A job fits when everything does that is asked for."""

    state: JobState | None = None
    model: str | None = None
    batch_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)  # pairs that the job's own must hold

    def fits(self, job: Job) -> bool:
        own = job.metadata or {}
        return (
            self.state in (None, job.state)
            and self.model in (None, job.model)
            and self.batch_id in (None, job.batch_id)
            and all(own.get(name) == value for name, value in self.metadata.items())
        )


ALL_JOBS = JobFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """It may be short, or empty, although more jobs follow: the work for one page is bounded, not only its length."""

    jobs: Sequence[Job]
    next_after: str | None  # the next page is of the jobs behind this; None: there is none
