"""One turn of the controller: lead, sweep, observe, plan, act."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

import structlog

from tasks.controller.plan import Plan, Step, plan
from tasks.controller.rescue import Rescue
from tasks.errors import ModelLoadFailed, ModelQuarantined
from tasks.failpoints import failpoint
from tasks.store.fleet_store import FleetStore

LEADER_LEASE_MS = 3_000  # several ticks; another controller takes over this long after the leader's last one

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Controller:
    """Several may run; the one with the leadership acts, and the epoch on its writes keeps a late one out."""

    fleet: FleetStore
    rescue: Rescue
    id: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    _said: dict[tuple[str, str], str] = field(default_factory=dict)

    def tick(self) -> Plan | None:
        """Returns the plan that was acted on, or None when another controller leads."""
        leadership = self.fleet.lead(self.id, LEADER_LEASE_MS)
        if not leadership:
            return None
        self.rescue.sweep()
        placement, asks = self.fleet.placement(), self.fleet.asks()
        fleet = self.fleet.fleet()
        quarantined = self.rescue.quarantine_models(fleet)
        decided = plan(fleet=fleet, queues=self.fleet.queues(), placement=placement, asks=asks, quarantined=quarantined)
        if decided.placement.epoch != placement.epoch:
            failpoint("before_place")
            if not self.fleet.place(decided.placement, self.id, leadership):
                return None
            failpoint("after_place")
        unmet = {step.model for step in decided.steps if step.kind == "wait"}
        for model in set(asks) - unmet:
            self.fleet.take_ask(model)
        for model, reason in decided.refused().items():
            self.rescue.refuse(model, reason, ModelQuarantined.code if model in quarantined else ModelLoadFailed.code)
        self._log_news(decided.steps)
        return decided

    def _log_news(self, steps: tuple[Step, ...]) -> None:
        """Every decision once, not every tick."""
        now = {(step.kind, step.model): step.reason for step in steps}
        for step in steps:
            if (step.kind, step.model) not in self._said:
                _log.info("decision", kind=step.kind, model=step.model, worker=step.worker, reason=step.reason)
        self._said = now
