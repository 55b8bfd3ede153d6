"""A small world around `plan`: workers that load, drain and stop in bounded time, and models that are always busy.

Turn-based and without a clock of its own. Whatever is ready has work for ever, which is the worst case for a model
that waits: nobody leaves by himself. With `reports_late` a heartbeat shows the work of a runner only `LATE_MS` after it
became ready, while its jobs wait no more: the store knows at once that they were claimed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from tasks.controller.demand import Demand
from tasks.controller.fleet_view import Memo
from tasks.controller.plan import Plan, plan
from tasks.controller.policy_state import PolicyState
from tasks.controller.rules import Rules
from tasks.fleet import (
    ClassBacklog,
    Fleet,
    ModelOffer,
    Placement,
    QueueReport,
    RunnerReport,
    RunnerState,
    WorkerReport,
)
from tasks.jobs import WorkerId

LATE_MS = 1_500


@dataclass(slots=True)
class Held:
    offer: ModelOffer
    state: RunnerState
    since_ms: int
    ready_ms: int | None = None  # None: waits for bytes
    gone_ms: int = 0
    jobs_ms: dict[tuple[str, int], int] = field(default_factory=dict)  # that it works on: (model, priority) → since


@dataclass(slots=True)
class World:
    offers: tuple[ModelOffer, ...]
    budgets: tuple[int, ...]
    rules: Rules
    drain_ms: int
    reports_late: bool = False
    now_ms: int = 1_000_000
    workers: list[dict[str, Held]] = field(default_factory=list)
    waiting_ms: dict[tuple[str, int], int] = field(default_factory=dict)  # (model, priority) → since
    absent_ms: dict[str, int] = field(default_factory=dict)  # waiting model without a ready runner → since
    placement: Placement = field(default_factory=Placement)
    state: PolicyState = field(default_factory=PolicyState)
    memo: Memo = field(default_factory=Memo)
    loads: int = 0
    load_ms: int = 0
    longest_ms: int = 0
    shortest_ms: int | None = None  # that a runner was ready before it had to leave
    last_evicted: str | None = None
    _reports: dict[int, WorkerReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workers = [{} for _ in self.budgets]

    def arrive(self, model: str, priority: int = 0) -> None:
        self.waiting_ms.setdefault((model, priority), self.now_ms)
        if not self.is_ready(model):
            self.absent_ms.setdefault(model, self.now_ms)

    def is_ready(self, model: str) -> bool:
        return any(model in held and held[model].state is RunnerState.READY for held in self.workers)

    def turn(self, elapsed_ms: int) -> Plan:
        """Let time pass, then plan twice, with and without a memo and with a stored state, and act on it."""
        self.now_ms += elapsed_ms
        for index in range(len(self.workers)):
            self._pass_time(index)
        fleet = Fleet(now_ms=self.now_ms, workers=tuple(self._report(index) for index in range(len(self.workers))))
        demand = Demand(queues=self._queues())
        decided = plan(
            demand=demand, fleet=fleet, placement=self.placement, state=self.state, rules=self.rules, memo=self.memo
        )
        stored = msgspec.json.decode(msgspec.json.encode(self.state), type=PolicyState)
        again = plan(demand=demand, fleet=fleet, placement=self.placement, state=stored, rules=self.rules)
        assert again == decided, "a new leader without a memo decides the same"
        self.placement, self.state = decided.placement, decided.state
        for index in range(len(self.workers)):
            self._act(index)
        return decided

    def _pass_time(self, index: int) -> None:
        held = self.workers[index]
        for model, each in list(held.items()):
            if each.state is RunnerState.DRAINING and each.gone_ms <= self.now_ms:
                del held[model]
        for model, each in held.items():
            if each.state is RunnerState.STARTING and each.ready_ms is not None and each.ready_ms <= self.now_ms:
                each.state, each.since_ms = RunnerState.READY, self.now_ms
                if model in self.absent_ms:
                    self.longest_ms = max(self.longest_ms, self.now_ms - self.absent_ms.pop(model))
                for key in [key for key in self.waiting_ms if key[0] == model]:
                    each.jobs_ms[key] = self.waiting_ms.pop(key)
        self._start(index)

    def _start(self, index: int) -> None:
        held = self.workers[index]
        for each in held.values():
            used = sum(
                other.offer.bytes
                for other in held.values()
                if other.state is not RunnerState.STARTING or other.ready_ms is not None
            )
            waits = each.state is RunnerState.STARTING and each.ready_ms is None
            if waits and used + each.offer.bytes <= self.budgets[index]:
                each.ready_ms = self.now_ms + each.offer.load_ms
                self.loads += 1
                self.load_ms += each.offer.load_ms

    def _act(self, index: int) -> None:
        desired = self.placement.workers[f"w{index}"]
        held = self.workers[index]
        for model in desired.evict:
            if model in held and held[model].state is not RunnerState.DRAINING:
                each = held[model]
                assert not each.offer.pinned
                self.last_evicted = model
                if each.state is RunnerState.READY:
                    ready_ms = self.now_ms - each.since_ms
                    self.shortest_ms = min(ready_ms, self.shortest_ms) if self.shortest_ms is not None else ready_ms
                each.state, each.gone_ms = RunnerState.DRAINING, self.now_ms + self.drain_ms
                if not self.is_ready(model):  # its work is parked and keeps its age; its turn counts from now on
                    for key, since_ms in (each.jobs_ms or {(model, 0): self.now_ms}).items():
                        self.waiting_ms[key] = min(since_ms, self.waiting_ms.get(key, since_ms))
                    self.absent_ms.setdefault(model, self.now_ms)
        offers = {offer.id: offer for offer in self.offers}
        for model in desired.hold:
            if model not in held:
                held[model] = Held(offers[model], RunnerState.STARTING, self.now_ms)
        staying = sum(each.offer.bytes for each in held.values() if each.state is not RunnerState.DRAINING)
        assert staying <= self.budgets[index], "the budget holds once the victims are gone"
        self._start(index)

    def _shows_work(self, each: Held) -> bool:
        if each.state is RunnerState.READY and self.reports_late:
            return self.now_ms - each.since_ms >= LATE_MS
        return each.state is not RunnerState.STARTING

    def _queues(self) -> tuple[QueueReport, ...]:
        models: dict[str, list[ClassBacklog]] = {}
        for (model, priority), since_ms in sorted(self.waiting_ms.items()):
            backlog = ClassBacklog(priority=priority, depth=1, oldest_age_ms=self.now_ms - since_ms)
            models.setdefault(model, []).append(backlog)
        return tuple(
            QueueReport(
                model=model,
                depth=len(classes),
                oldest_age_ms=max(each.oldest_age_ms for each in classes),
                classes=tuple(classes),
            )
            for model, classes in models.items()
        )

    def _report(self, index: int) -> WorkerReport:
        report = WorkerReport(
            id=WorkerId(f"w{index}"),
            pid=1,
            host=f"h{index}",
            device="cpu",
            budget_bytes=self.budgets[index],
            used_bytes=0,
            started_ms=0,
            offers=self.offers,
            runners=tuple(
                RunnerReport(
                    pid=1,
                    model=model,
                    state=each.state,
                    bytes=each.offer.bytes,
                    slots=each.offer.slots,
                    in_flight=each.offer.slots if self._shows_work(each) else 0,
                    since_ms=each.since_ms,
                    idle_since_ms=None if self._shows_work(each) else each.since_ms,
                )
                for model, each in self.workers[index].items()
            ),
        )
        known = self._reports.get(index)
        if known == report:
            return known
        self._reports[index] = report
        return report
