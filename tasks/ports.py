"""What `tasks` needs from a worker, as a protocol. `workers` implements it and registers itself at boot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tasks.job_request import JobRequest
from tasks.jobs import JobError, JobId, Priority, Usage, WorkerId
from tasks.store.token_writer import Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One numbered execution of a job, as claimed from the store."""

    job_id: JobId
    number: int  # fence
    model: str
    request: JobRequest
    last_seq: int  # of the token stream; the next event is last_seq + 1
    forced_ids: tuple[int, ...]  # tokens that earlier attempts already published
    emitted_text: str  # text that earlier attempts already published
    deadline_ms: int | None
    published_rows: int = 0  # results of an encoding that earlier attempts already published


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The sequence ended by itself. `text` is the whole text over all attempts."""

    text: str
    finish_reason: str
    usage: Usage
    tail: Chunk | None = None  # its last output, not published yet: it goes out together with the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The client asked for the end, or the deadline passed; `text` is what was generated until then."""

    text: str
    usage: Usage | None
    is_expired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The attempt failed. Retryable: the runner died under it. Not retryable: the request itself is wrong."""

    error: JobError
    is_retryable: bool
    company: int = 0  # other attempts that broke with the same runner: any of them may be to blame


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """The worker drains: the job stopped at a token boundary and goes on elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A higher attempt owns the job; nothing more may be written."""


Outcome = Finished | Cancelled | Failed | Parked | Lost


class Slot(Protocol):
    """A reserved place in a ready runner."""

    @property
    def fingerprint(self) -> str:
        """Of the model as this runner has loaded it (`tasks.fleet.ModelOffer`)."""
        ...

    @property
    def runner_model(self) -> str:
        """The model whose runner it is: that of the job, or the base of the adapter that the job asked for."""
        ...

    def run(self, attempt: Attempt) -> Outcome:
        """Generate, publishing tokens on the way; blocks until the outcome. Gives the place back at its end."""
        ...

    def give_back(self) -> None:
        """Return an unused place."""
        ...


class ModelHost(Protocol):
    """A worker's warm pool, as the Celery task sees it."""

    @property
    def worker_id(self) -> WorkerId: ...

    def take_slot(self, model: str, priority: Priority) -> Slot | None:
        """A place in a ready runner of the model, or None when none is free.

        More urgent work than batch may share the places that batch work holds: the engine parks that meanwhile."""
        ...


_host: ModelHost | None = None


def register_model_host(host: ModelHost) -> None:
    global _host
    _host = host


def model_host() -> ModelHost:
    """The host of this process. Raises RuntimeError in a process that is no worker."""
    if _host is None:
        raise RuntimeError("No model host is registered: this process is not a Keepwarm worker.")
    return _host
