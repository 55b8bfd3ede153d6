"""Answers about models, workers, runners and queues."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, Field

from app.fleet_view import FleetSnapshot
from tasks.controller.decisions import Action, Code, Decision
from tasks.fleet import ModelKind, ModelOffer, RunnerReport, RunnerState, WorkerReport


class Warmth(StrEnum):
    """How soon a model can answer."""

    WARM = "warm"
    LOADING = "loading"
    COLD = "cold"
    FAILED = "failed"


class ModelDetails(BaseModel):
    """What OpenAI's model object has no room for."""

    state: Warmth
    reason: str | None  # why it is not warm
    context_length: int
    slots: int
    bytes: int
    aliases: list[str]
    description: str
    base: str | None  # of a LoRA adapter: the model whose runner serves it
    kind: ModelKind
    embedding_length: int | None  # numbers in a vector; null for a model that makes none
    reduced: str | None  # what was taken from its context or slots to make it fit


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0  # unknown; OpenAI's clients require a number
    owned_by: str = "keepwarm"
    keepwarm: ModelDetails


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class RunnerObject(BaseModel):
    pid: int
    model: str
    state: RunnerState
    bytes: int
    slots: int
    closed_slots: int  # of them; they are opened when jobs come for them, and each takes `slot_bytes` more then
    slot_bytes: int
    in_flight: int
    progress: float
    reduced: str | None  # what was taken from its context or slots to make it fit
    adapters: dict[str, int]  # LoRA adapters that it serves as well, and how many of `in_flight` are theirs
    idle_s: float | None  # None while something runs


class WorkerObject(BaseModel):
    id: str
    pid: int
    host: str
    device: str
    budget_bytes: int
    used_bytes: int
    draining: bool
    runners: list[RunnerObject]
    warnings: list[str] = Field(description="what its operator should mend, such as an entry of models.yaml")


class QueueObject(BaseModel):
    model: str
    depth: int
    oldest_age_s: float


class PoolObject(BaseModel):
    workers: list[WorkerObject]
    queues: list[QueueObject]


class DecisionObject(BaseModel):
    """One decision of the controller. `terms` are the numbers that it rests on: bytes, milliseconds, shares."""

    at: datetime
    action: Action
    reason: Code
    model: str
    worker: str | None
    text: str
    terms: dict[str, int | float | str]


class DecisionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[DecisionObject]


class AskObject(BaseModel):
    """202: the controller was asked; watch /v1/models or /v1/pool for the effect."""

    model: str
    asked: Literal["warm", "evict"]


def model_object(offer: ModelOffer, snapshot: FleetSnapshot) -> ModelObject:
    state, reason = warmth(offer, snapshot)
    return ModelObject(
        id=offer.id,
        keepwarm=ModelDetails(
            state=state,
            reason=reason,
            context_length=offer.context_length,
            slots=offer.slots,
            bytes=offer.bytes,
            aliases=list(offer.aliases),
            description=offer.description,
            base=offer.base,
            kind=offer.kind,
            reduced=offer.reduced,
            embedding_length=offer.embedding_length if offer.kind is ModelKind.EMBED else None,
        ),
    )


def warmth(offer: ModelOffer, snapshot: FleetSnapshot) -> tuple[Warmth, str | None]:
    """The best state that any worker can show, and why it is not better."""
    if (entry := snapshot.quarantined.get(offer.id)) is not None:
        return Warmth.FAILED, entry.explanation
    workers = snapshot.fleet.workers
    runners = [runner for worker in workers for runner in worker.runners if runner.serves(offer.id)]
    if any(runner.state is RunnerState.READY for runner in runners):
        return Warmth.WARM, None
    loading = [runner.progress for runner in runners if runner.state is RunnerState.STARTING]
    if loading:
        return Warmth.LOADING, f"{max(loading):.0%} loaded"
    if offer.failure:
        return Warmth.FAILED, offer.failure
    if any(runner.model == offer.base for worker in workers for runner in worker.runners):
        return Warmth.COLD, f"its base '{offer.base}' is warm without it, and is loaded again when it is idle"
    if not any(known.id == offer.id for worker in workers for known in worker.offers):
        return Warmth.COLD, "no live worker offers it; jobs wait for one"
    return Warmth.COLD, f"loads on demand, in about {offer.load_ms / 1000:.1f} s"


def pool_object(snapshot: FleetSnapshot) -> PoolObject:
    return PoolObject(
        workers=[_worker_object(worker, snapshot.fleet.now_ms) for worker in snapshot.fleet.workers],
        queues=[
            QueueObject(model=queue.model, depth=queue.depth, oldest_age_s=queue.oldest_age_ms / 1000)
            for queue in snapshot.queues
        ],
    )


def decision_object(decision: Decision) -> DecisionObject:
    return DecisionObject(
        at=datetime.fromtimestamp(decision.at_ms / 1000, UTC),
        action=decision.action,
        reason=decision.code,
        model=decision.model,
        worker=decision.worker,
        text=decision.text,
        terms=dict(decision.terms),
    )


def _worker_object(worker: WorkerReport, now_ms: int) -> WorkerObject:
    return WorkerObject(
        id=worker.id,
        pid=worker.pid,
        host=worker.host,
        device=worker.device,
        budget_bytes=worker.budget_bytes,
        used_bytes=worker.used_bytes,
        draining=worker.is_draining,
        runners=[_runner_object(runner, now_ms) for runner in worker.runners],
        warnings=list(worker.warnings),
    )


def _runner_object(runner: RunnerReport, now_ms: int) -> RunnerObject:
    return RunnerObject(
        pid=runner.pid,
        model=runner.model,
        state=runner.state,
        bytes=runner.bytes,
        slots=runner.slots,
        closed_slots=runner.closed_slots,
        slot_bytes=runner.slot_bytes,
        in_flight=runner.in_flight,
        progress=runner.progress,
        reduced=runner.reduced,
        adapters=runner.adapters,
        idle_s=None if runner.idle_since_ms is None else max(0, now_ms - runner.idle_since_ms) / 1000,
    )
