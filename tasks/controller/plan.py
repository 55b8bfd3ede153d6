"""Decide which worker should hold which models. Pure and deterministic: integer ms, ids break ties, no clock, no store.

    1  forget what is no longer true: workers that left, models that nobody offers or that failed there; quarantined
       models leave every worker and are placed nowhere
    2  operators' wishes: `evict` leaves, `warm` becomes a candidate
    3  idle models past their TTL leave
    4  candidates: pinned and wished-for models, and models with waiting jobs that nobody holds; least slack first
    5  for each candidate a worker: with room; else with the cheapest set of idle victims; else, when the candidate
       has waited beyond its target, with busy victims past their residency floor; else it waits
    6  a candidate that is quarantined, fits nowhere, or failed everywhere, ends its jobs with the reason

Slack is the time until a waiting job misses its class target even if the load began now (`POLICY` rule 3); the value
of keeping a model is the load it would cost again times the chance that it is needed soon (rule 2, with idle time in
place of a measured rate).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tasks.fleet import (
    Fleet,
    ModelOffer,
    Placement,
    QueueReport,
    RunnerReport,
    RunnerState,
    WorkerPlacement,
    WorkerReport,
)

TARGET_WAIT_MS = 10_000  # a candidate may displace busy models only after its oldest job waited this long
RESIDENCY_FLOOR_MS = 10_000  # and only models that have been ready for this long
KEEP_HORIZON_MS = 45_000  # idle for this long: the value of keeping a model has fallen to 1/e
NOBODY: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change, or one decision not to change, with its reason and numbers."""

    kind: str  # "load", "evict", "wait", "refuse"
    model: str
    worker: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`placement` has the epoch of the observed one plus one if anything changed, else it is the observed one."""

    placement: Placement
    steps: tuple[Step, ...]

    def refused(self) -> dict[str, str]:
        """Models whose waiting jobs can't be served, with the reason."""
        return {step.model: step.reason for step in self.steps if step.kind == "refuse"}


@dataclass(slots=True)
class _Worker:
    """A worker as the plan is being made: what is really there, and what it shall hold."""

    report: WorkerReport
    hold: set[str]
    evict: set[str]
    offers: dict[str, ModelOffer] = field(init=False)
    runners: dict[str, RunnerReport] = field(init=False)

    def __post_init__(self) -> None:
        self.offers = {offer.id: offer for offer in self.report.offers}
        self.runners = {runner.model: runner for runner in self.report.runners}

    @property
    def id(self) -> str:
        return self.report.id

    def bytes_of(self, model: str) -> int:
        runner = self.runners.get(model)
        return max(runner.bytes if runner else 0, self.offers[model].bytes if model in self.offers else 0)

    @property
    def staying_bytes(self) -> int:
        """What residents and held models use once all victims have left."""
        return sum(self.bytes_of(model) for model in (self.hold | set(self.runners)) - self.evict)


def plan(
    *,
    fleet: Fleet,
    queues: Iterable[QueueReport],
    placement: Placement,
    asks: Mapping[str, str],
    quarantined: Mapping[str, str] = NOBODY,
) -> Plan:
    """The desired placement for what was observed, with a reason for every step.

    `quarantined`: models that are to be placed nowhere, with the reason."""
    workers = [_start(report, placement) for report in fleet.workers if not report.is_draining]
    waiting = {queue.model: queue for queue in queues}
    steps: list[Step] = []
    _drop_quarantined(workers, quarantined, steps)
    _drop_wished(workers, asks, steps)
    _drop_expired(workers, waiting, fleet.now_ms, steps)
    for model in _candidates(workers, waiting, asks):
        if model in quarantined:
            steps.append(Step(kind="refuse", model=model, worker=None, reason=quarantined[model]))
            continue
        steps.append(_place(model, workers, waiting, fleet.now_ms))
        _apply(steps[-1], workers)
    desired = {
        worker.id: WorkerPlacement(hold=tuple(sorted(worker.hold)), evict=tuple(sorted(worker.evict)))
        for worker in workers
    }
    if desired == placement.workers:
        return Plan(placement=placement, steps=tuple(steps))
    return Plan(placement=Placement(epoch=placement.epoch + 1, workers=desired), steps=tuple(steps))


def _start(report: WorkerReport, placement: Placement) -> _Worker:
    """Rule 1. An eviction stays on record until the runner is gone, so that a lost hint costs nothing."""
    desired = placement.workers.get(report.id, WorkerPlacement())
    usable = {offer.id for offer in report.offers if offer.is_usable}
    resident = {runner.model for runner in report.runners}
    evict = set(desired.evict) & resident
    return _Worker(report=report, hold=(set(desired.hold) & usable) - evict, evict=evict)


def _drop_quarantined(workers: list[_Worker], quarantined: Mapping[str, str], steps: list[Step]) -> None:
    """Rule 1."""
    for worker in workers:
        for model in sorted((set(worker.runners) | worker.hold) & set(quarantined)):
            if model not in worker.evict:
                steps.append(Step(kind="evict", model=model, worker=worker.id, reason=quarantined[model]))
                _evict(worker, model)


def _drop_wished(workers: list[_Worker], asks: Mapping[str, str], steps: list[Step]) -> None:
    """Rule 2."""
    for worker in workers:
        for model in sorted(set(worker.runners) | worker.hold):
            if asks.get(model) == "evict" and model not in worker.evict:
                steps.append(Step(kind="evict", model=model, worker=worker.id, reason="an operator asked for it"))
                _evict(worker, model)


def _drop_expired(workers: list[_Worker], waiting: Mapping[str, QueueReport], now_ms: int, steps: list[Step]) -> None:
    """Rule 3."""
    for worker in workers:
        for model, runner in sorted(worker.runners.items()):
            offer = worker.offers.get(model)
            if offer is None or offer.ttl_s is None or offer.pinned or model in waiting or model in worker.evict:
                continue
            idle_ms = _idle_ms(runner, now_ms)
            if idle_ms is not None and idle_ms > offer.ttl_s * 1000:
                reason = f"idle for {idle_ms / 1000:.0f} s, its TTL is {offer.ttl_s} s"
                steps.append(Step(kind="evict", model=model, worker=worker.id, reason=reason))
                _evict(worker, model)


def _candidates(workers: list[_Worker], waiting: Mapping[str, QueueReport], asks: Mapping[str, str]) -> list[str]:
    """Rule 4: models that should be held somewhere and are not. Waiting jobs first, by slack."""
    offers: dict[str, ModelOffer] = {}
    for worker in workers:
        for offer in worker.offers.values():
            if offer.id not in offers or not offers[offer.id].is_usable:
                offers[offer.id] = offer
    wanted = set(waiting)
    wanted |= {model for model, ask in asks.items() if ask == "warm"}
    wanted |= {model for model, offer in offers.items() if offer.pinned and offer.is_usable}

    def urgency(model: str) -> tuple[int, str]:
        offer, queue = offers.get(model), waiting.get(model)
        if queue is None:
            return TARGET_WAIT_MS * 1000, model
        return TARGET_WAIT_MS - queue.oldest_age_ms - (offer.load_ms if offer else 0), model

    return sorted((model for model in wanted if not _is_held(model, workers)), key=urgency)


def _is_held(model: str, workers: list[_Worker]) -> bool:
    return any(model in worker.hold or (model in worker.runners and model not in worker.evict) for worker in workers)


def _place(model: str, workers: list[_Worker], waiting: Mapping[str, QueueReport], now_ms: int) -> Step:
    """Rules 5 and 6 for one candidate."""
    if not workers:
        return Step(kind="wait", model=model, worker=None, reason="no worker is alive")
    offering = [worker for worker in workers if model in worker.offers]
    if not offering:
        return Step(kind="refuse", model=model, worker=None, reason=f"No live worker offers '{model}' any more.")
    usable = [worker for worker in offering if worker.offers[model].is_usable]
    if not usable:
        reason = offering[0].offers[model].failure or "unknown"
        return Step(kind="refuse", model=model, worker=None, reason=f"'{model}' can't be loaded: {reason}")
    fitting = [worker for worker in usable if worker.offers[model].bytes <= _reachable_bytes(worker)]
    if not fitting:
        return Step(kind="refuse", model=model, worker=None, reason=_does_not_fit(model, usable))

    with_room = [worker for worker in fitting if _free_bytes(worker) >= worker.offers[model].bytes]
    if with_room:
        worker = max(with_room, key=lambda each: (_free_bytes(each), each.id))
        reason = f"needs {_mib(worker.offers[model].bytes)}, {_mib(_free_bytes(worker))} are free"
        return Step(kind="load", model=model, worker=worker.id, reason=reason)

    queue = waiting.get(model)
    is_late = queue is not None and queue.oldest_age_ms >= TARGET_WAIT_MS
    options = []
    for worker in fitting:
        victims = _victims(worker, worker.offers[model].bytes, waiting, now_ms, allow_busy=is_late)
        if victims is not None:
            cost = sum(_keep_value(worker, victim, now_ms) for victim in victims)
            options.append((cost, worker.id, worker, victims))
    if not options:
        if any(worker.evict for worker in fitting):
            return Step(kind="wait", model=model, worker=None, reason="room is being made")
        return Step(kind="wait", model=model, worker=None, reason="every resident model is busy or just loaded")
    _, _, worker, victims = min(options, key=lambda option: option[:2])
    for victim in victims:
        _evict(worker, victim)
    reason = (
        f"needs {_mib(worker.offers[model].bytes)} of {_mib(worker.report.budget_bytes)}; "
        f"takes the place of {', '.join(victims)} ({'busy, over target wait' if is_late else 'idle'})"
    )
    return Step(kind="load", model=model, worker=worker.id, reason=reason)


def _apply(step: Step, workers: list[_Worker]) -> None:
    if step.kind == "load":
        next(worker for worker in workers if worker.id == step.worker).hold.add(step.model)


def _evict(worker: _Worker, model: str) -> None:
    worker.hold.discard(model)
    if model in worker.runners:
        worker.evict.add(model)


def _free_bytes(worker: _Worker) -> int:
    """Bytes that are free once the victims chosen before have left."""
    return worker.report.budget_bytes - worker.staying_bytes


def _reachable_bytes(worker: _Worker) -> int:
    """The most that could ever be freed: everything but pinned models."""
    pinned = sum(
        worker.bytes_of(model) for model, offer in worker.offers.items() if offer.pinned and model in worker.hold
    )
    return worker.report.budget_bytes - pinned


def _victims(
    worker: _Worker, needed: int, waiting: Mapping[str, QueueReport], now_ms: int, *, allow_busy: bool
) -> tuple[str, ...] | None:
    """The least valuable residents whose leaving makes room, or None. Chosen as a set before anything stops."""
    ranked = []
    for model, runner in worker.runners.items():
        offer = worker.offers.get(model)
        if model in worker.evict or (offer is not None and offer.pinned) or runner.state is not RunnerState.READY:
            continue
        is_busy = runner.in_flight > 0 or model in waiting
        if is_busy and not (allow_busy and now_ms - runner.since_ms >= RESIDENCY_FLOOR_MS):
            continue
        density = _keep_value(worker, model, now_ms) / max(1, worker.bytes_of(model))
        ranked.append((is_busy, density, model))
    shortfall = needed - _free_bytes(worker)
    chosen: list[str] = []
    for _, _, model in sorted(ranked):
        if shortfall <= 0:
            break
        chosen.append(model)
        shortfall -= worker.bytes_of(model)
    if shortfall > 0:
        return None
    return tuple(_without_superfluous(chosen, -shortfall, worker))


def _without_superfluous(chosen: list[str], spare_bytes: int, worker: _Worker) -> list[str]:
    """Spare the most valuable of the chosen that turned out not to be needed."""
    needed = []
    for model in reversed(chosen):
        if worker.bytes_of(model) <= spare_bytes:
            spare_bytes -= worker.bytes_of(model)
        else:
            needed.append(model)
    return needed[::-1]


def _keep_value(worker: _Worker, model: str, now_ms: int) -> float:
    """Expected load time that keeping the model saves, in ms."""
    offer = worker.offers.get(model)
    idle_ms = _idle_ms(worker.runners[model], now_ms) or 0
    return (offer.load_ms if offer else 0) * math.exp(-idle_ms / KEEP_HORIZON_MS)


def _idle_ms(runner: RunnerReport, now_ms: int) -> int | None:
    if runner.state is not RunnerState.READY or runner.in_flight or runner.idle_since_ms is None:
        return None
    return max(0, now_ms - runner.idle_since_ms)


def _does_not_fit(model: str, workers: list[_Worker]) -> str:
    sizes = "; ".join(
        f"{worker.id} needs {_mib(worker.offers[model].bytes)} and can free at most {_mib(_reachable_bytes(worker))} "
        f"of its budget of {_mib(worker.report.budget_bytes)}"
        for worker in workers
    )
    return f"'{model}' fits on no worker: {sizes}. Raise KEEPWARM_MEMORY_BUDGET, or lower its context_length or slots."


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
