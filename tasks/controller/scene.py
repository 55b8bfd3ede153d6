"""The working set of one plan: what was observed, what was decided so far, and what the policy will remember."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tasks.controller.decisions import Action, Code, Decision, Term
from tasks.controller.demand import Demand, patience_ms
from tasks.controller.fleet_view import FleetView, WorkerView
from tasks.controller.policy_state import Bucket, LoadFailures, PolicyState
from tasks.controller.rules import Rules
from tasks.controller.victims import Resident, rank_residents, reachable_bytes
from tasks.fleet import QueueReport

NO_TERMS: Mapping[str, Term] = {}


class Scene:
    """Mutable, lives for one call of `plan`. Everything that a rule changes goes through here."""

    def __init__(self, fleet: FleetView, demand: Demand, state: PolicyState, rules: Rules) -> None:
        self.fleet = fleet
        self.demand = demand
        self.queues: Mapping[str, QueueReport] = {queue.model: queue for queue in demand.queues}
        # As clients asked: adapters under their own names.
        self.asked = {**self.queues, **{each.queue.model: each.queue for each in demand.adapters}}
        self.state = state
        self.rules = rules
        self.decisions: list[Decision] = []
        self.claimed: dict[str, str] = {}  # worker → the overdue model that has the first claim on it
        self.fallbacks: dict[str, str] = {}
        self.fallback_slots: dict[str, int] = {}
        self._ranked: dict[str, list[Resident]] = {}
        self._reachable: dict[str, int] = {}

    @property
    def now_ms(self) -> int:
        return self.fleet.now_ms

    def say(
        self,
        action: Action,
        code: Code,
        model: str,
        text: str,
        *,
        worker: str | None = None,
        terms: Mapping[str, Term] = NO_TERMS,
    ) -> None:
        self.decisions.append(
            Decision(at_ms=self.now_ms, action=action, code=code, model=model, worker=worker, text=text, terms=terms)
        )

    def patience_ms(self, model: str) -> int | None:
        """Until the model's first class is late, counted from its last turn; None when nothing waits for it."""
        queue = self.asked.get(model)
        if queue is None:
            return None
        left_ms = self.state.displaced_ms.get(model)
        return patience_ms(queue, self.rules, None if left_ms is None else self.now_ms - left_ms)

    def residents(self, view: WorkerView) -> list[Resident]:
        """Of this worker, the least valuable first; ranked once between two changes."""
        ranked = self._ranked.get(view.id)
        if ranked is None:
            ranked = self._ranked[view.id] = rank_residents(view, self.fleet, self.queues, self.state, self.rules)
        return ranked

    def reachable_bytes(self, view: WorkerView) -> int:
        """The most that could ever be freed there."""
        found = self._reachable.get(view.id)
        if found is None:
            found = self._reachable[view.id] = reachable_bytes(view, self.fleet)
        return found

    def load(self, view: WorkerView, model: str, victims: list[Resident]) -> None:
        for victim in victims:
            self.evict(view.id, victim.model)
        self._forget_ranks(view.id, model)
        self.fleet.hold(view.id, model)

    def evict(self, worker: str, model: str) -> None:
        self._forget_ranks(worker, model)
        self.fleet.evict(worker, model)
        if not self.fleet.copies(model):  # also when nothing waits: what it works on is parked, and will
            self._remember(displaced_ms={**self.state.displaced_ms, model: self.now_ms})

    def _forget_ranks(self, worker: str, model: str) -> None:
        """A copy more or less changes this worker, and what the other copies are worth."""
        for name in self.fleet.holder_ids(model) | {worker}:
            self._ranked.pop(name, None)
            self._reachable.pop(name, None)

    def spend(self, worker: str, load_ms: int) -> None:
        left = self.state.bucket_ms(worker, self.now_ms, self.rules) - load_ms
        self._remember(buckets={**self.state.buckets, worker: Bucket(left, self.now_ms)})

    def set_failures(self, model: str, failures: LoadFailures | None) -> None:
        known = dict(self.state.failures)
        if failures is None:
            known.pop(model, None)
        else:
            known[model] = failures
        self._remember(failures=known)

    def set_prefetch_time(self) -> None:
        self._remember(prefetch_ms=self.now_ms)

    def _remember(self, **changes: object) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)
