"""When a prompt or a model is kept away from the fleet because it kills what serves it. Pure: no store, no clock.

A prompt: two attempts of one job lost their runner at the same place, without a new token in between. A job that got
further before each loss was there when something else went wrong; its attempts are bounded anyway. Where others were in
the runner's batch each time, any of them may be to blame: then those that lost two are tried one at a time (claim.lua),
and the one that is on trial when a third runner dies is the culprit; the loss is charged to nobody else (release.lua).

A model: three workers were lost within ten minutes while they ran jobs of the model or loaded it, and no job of the
model succeeded in between. Several jobs that went down with one worker are one loss. A worker that is still alive was
not lost: its lease ended for another reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from tasks.fleet import Fleet
from tasks.generation import GenerationRequest
from tasks.job_request import JobRequest, encode_request
from tasks.jobs import JobError

# Codes of broken attempts that speak against the prompt: its runner died, ran out of memory, or hung.
RUNNER_LOSSES = frozenset({"runner_crashed", "runner_out_of_memory", "runner_stalled"})
MAX_RUNNER_LOSSES = 2  # of one job, at the same place

MAX_WORKER_LOSSES = 3  # of one model
LOSS_WINDOW_MS = 10 * 60 * 1000
SAME_LOSS_MS = 5_000  # leases that end within this time of each other ended with the same loss

PROMPT_QUARANTINED = "prompt_quarantined"


class Suspect(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept away and why; stored as JSON. The prompt itself is never here, only its digest."""

    kind: Literal["prompt", "model"]
    model: str
    digest: str = ""  # of a prompt
    cause: JobError
    jobs: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.digest or self.model}"

    @property
    def reason(self) -> str:
        """A sentence for clients and operators."""
        if self.kind == "model":
            return f"'{self.model}' is quarantined: {self.cause.message}"
        return (
            f"This request is quarantined: it cost '{self.model}' {MAX_RUNNER_LOSSES} runners at the same place. "
            f"The last one: {self.cause.message}"
        )


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """A suspect under lock, from and until ms of the store's clock."""

    suspect: Suspect
    since_ms: int
    until_ms: int

    @property
    def id(self) -> str:
        return self.suspect.id

    @property
    def until(self) -> str:
        return datetime.fromtimestamp(self.until_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    @property
    def explanation(self) -> str:
        """The reason, until when it holds, and how it is lifted."""
        return (
            f"{self.suspect.reason} Until {self.until}; lift it earlier with `keepwarm quarantine lift {self.id}` "
            f"or DELETE /v1/quarantine/{self.id}."
        )


class WorkerLoss(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that vanished while it served a model. Times are ms of the store's clock."""

    model: str
    worker: str
    busy_since_ms: int  # it worked on the model since then
    lost_ms: int


def request_digest(request: JobRequest) -> str:
    """SHA-256 of the request without its seed, which is drawn at admission."""
    if isinstance(request, GenerationRequest):
        request = msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, seed=0))
    return hashlib.sha256(encode_request(request)).hexdigest()


def speaks_against_prompt(failure: JobError | None) -> bool:
    return failure is not None and failure.code in RUNNER_LOSSES


def suspicious_models(
    losses: Iterable[WorkerLoss], fleet: Fleet, succeeded_ms: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """Models to quarantine, each with the workers that it cost, in the order of their loss.

    `succeeded_ms`: per model when a job of it last succeeded."""
    born: dict[str, int] = {worker.id: worker.started_ms for worker in fleet.workers}
    counted: dict[str, list[WorkerLoss]] = {}
    for loss in sorted(losses, key=lambda each: (each.lost_ms, each.worker, each.busy_since_ms)):
        is_alive = loss.worker in born and born[loss.worker] <= loss.busy_since_ms  # not a successor of its name
        is_old = loss.lost_ms <= fleet.now_ms - LOSS_WINDOW_MS
        if is_alive or is_old or loss.lost_ms <= succeeded_ms.get(loss.model, 0):
            continue
        before = counted.setdefault(loss.model, [])
        if not any(each.worker == loss.worker and loss.lost_ms - each.lost_ms < SAME_LOSS_MS for each in before):
            before.append(loss)
    return {
        model: tuple(loss.worker for loss in found)
        for model, found in sorted(counted.items())
        if len(found) >= MAX_WORKER_LOSSES
    }


def model_suspect(model: str, workers: tuple[str, ...]) -> Suspect:
    message = (
        f"{len(workers)} workers were lost within {LOSS_WINDOW_MS // 60_000} minutes while they served it "
        f"({', '.join(workers)}), and no job of it succeeded in between."
    )
    return Suspect(kind="model", model=model, cause=JobError(code="worker_lost", message=message), workers=workers)
