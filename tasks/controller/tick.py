"""One turn of the controller: lead, sweep, observe, plan, act, and keep what was decided."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from tasks.controller.adapters import adapters_of, as_demand_of_bases
from tasks.controller.decisions import Action, Code, Decision
from tasks.controller.demand import Demand
from tasks.controller.fleet_view import Memo
from tasks.controller.plan import Plan, plan
from tasks.controller.policy_state import PolicyState
from tasks.controller.rescue import Rescue
from tasks.errors import ModelLoadFailed, ModelQuarantined
from tasks.failpoints import failpoint
from tasks.fleet import Fleet, ModelOffer
from tasks.jobs import JobError
from tasks.process_name import process_name
from tasks.store.fleet_store import FleetStore
from tasks.store.policy_store import PolicyStore

LEADER_LEASE_MS = 3_000  # several ticks; another controller takes over this long after the leader's last one
KEEP_RATES_MS = 2_000  # rates are written so often, everything else that the policy remembers at once

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Controller:
    """Several may run; the one with the leadership acts, and the epoch on its writes keeps a late one out."""

    fleet: FleetStore
    policy: PolicyStore
    rescue: Rescue
    id: str = field(default_factory=process_name)
    _leadership: int = 0  # that `_state` belongs to
    _state: PolicyState = field(default_factory=PolicyState)
    _kept: tuple[int, PolicyState] = (0, PolicyState())  # when it was last written, and what
    _memo: Memo = field(default_factory=Memo)
    _looked_ms: int | None = None  # when arrivals were taken last
    _said: frozenset[tuple[str, str, str, str | None]] = frozenset()

    def tick(self) -> Plan | None:
        """Returns the plan that was acted on, or None when another controller leads."""
        leadership = self.fleet.lead(self.id, LEADER_LEASE_MS)
        if not leadership:
            return None
        if leadership != self._leadership:
            self._leadership, self._state = leadership, self.policy.state()
            self._kept = (0, self._state)
            self._looked_ms = None
        self.rescue.sweep()
        placement = self.fleet.placement()
        fleet = self.fleet.fleet()
        quarantined = self.rescue.quarantine_models(fleet)
        queues, asks = self.fleet.queues(), self.fleet.asks()
        away = self._away({queue.model for queue in queues} | set(asks), fleet)
        asked = Demand(
            queues=queues,
            arrivals=self.policy.take_arrivals(),
            looked_ms=self._looked_ms,
            service_ms=self.policy.service_ms() if queues else {},
            asks=asks,
            quarantined=quarantined,
            away=away,
        )
        demand = as_demand_of_bases(asked, adapters_of(fleet, away))
        self._looked_ms = fleet.now_ms
        decided = plan(demand=demand, fleet=fleet, placement=placement, state=self._state, memo=self._memo)
        if decided.placement.epoch != placement.epoch:
            failpoint("before_place")
            if not self.fleet.place(decided.placement, self.id, leadership):
                return None
            failpoint("after_place")
        self._keep(decided, fleet.now_ms)
        for model in set(demand.asks) - decided.waiting():
            self.fleet.take_ask(model)
        unservable = decided.unservable()
        for model, target in decided.fallbacks.items():
            reason = _error(unservable[model]) if model in unservable else None
            self.rescue.hand_over(model, target, refusal=reason, at_most=decided.fallback_slots.get(model))
        for model, refusal in decided.refused().items():
            self.rescue.refuse(model, _error(refusal))
        return decided

    def _away(self, wanted: set[str], fleet: Fleet) -> dict[str, ModelOffer]:
        """Offers outlive their workers for a while, so that the jobs of a worker that restarts wait for it."""
        if not wanted:
            return {}
        live = {offer.id for worker in fleet.workers if not worker.is_draining for offer in worker.offers}
        if wanted <= live:
            return {}
        known = {offer.id: offer for offer in self.fleet.known_offers()}
        missing = wanted - live
        missing |= {known[model].runner_model for model in missing & known.keys()} - live
        return {model: known[model] for model in missing if model in known}

    def _keep(self, decided: Plan, now_ms: int) -> None:
        """Every decision once, not every tick; the state when it matters to a successor."""
        news = [each for each in decided.decisions if each.topic not in self._said]
        self._said = frozenset(each.topic for each in decided.decisions)
        self._state = decided.state
        for each in news:
            if each.action is not Action.KEEP:
                _log.info(
                    "decision", action=each.action, code=each.code, model=each.model, worker=each.worker, text=each.text
                )
        kept_ms, kept = self._kept
        is_due = now_ms - kept_ms >= KEEP_RATES_MS or kept.buckets != self._state.buckets or bool(news)
        state = self._state if self._state is not kept and is_due else None
        if state is None and not news:
            return
        if self.policy.remember(state, news, self.id, self._leadership) and state is not None:
            self._kept = (now_ms, state)


def _error(refusal: Decision) -> JobError:
    """Of the jobs that the decision leaves without an answer."""
    code = ModelQuarantined.code if refusal.code is Code.QUARANTINED else ModelLoadFailed.code
    return JobError(code=code, message=refusal.text, param="model")
