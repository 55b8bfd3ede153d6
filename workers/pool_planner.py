"""What leaves a warm pool next and what is loaded, so that it comes closer to its placement.

It puts together what `workers.residency` decides on. Everything here is called under the lock of the pool's state, and
changes nothing but what that says of plans: `wanted_since_s` and `awaited_bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from tasks.controller.decisions import Decision
from tasks.fleet import RunnerState
from tasks.jobs import WorkerId
from workers.clock import Clock
from workers.costs import ModelCosts
from workers.eviction import Candidate, UseRate, keep_value
from workers.ledger import Ledger
from workers.own_evictions import outdated_eviction, unheld_eviction
from workers.pool_state import PoolState
from workers.residency import Wanted, plan_residency
from workers.resident import Resident
from workers.served_models import ServedModels

OUTDATED_GRACE_S = 60.0  # a busy runner with settings that no longer hold may go on for so long, then it is drained


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSteps:
    """`load` now, `stop` now; and why those leave that the placement does not send away."""

    load: tuple[Wanted, ...]
    stop: tuple[str, ...]
    own_evictions: tuple[Decision, ...]


class PoolPlanner:
    def __init__(
        self,
        *,
        worker_id: WorkerId,
        device_name: str,
        state: PoolState,
        served: ServedModels,
        ledger: Ledger,
        costs: ModelCosts,
        clock: Clock,
    ) -> None:
        self._worker_id = worker_id
        self._device_name = device_name
        self._state = state
        self._served = served
        self._ledger = ledger
        self._costs = costs
        self._clock = clock

    def plan(self, disks: Mapping[str, int | None]) -> PoolSteps:
        """`disks`: that loads of absent models would read from, as `workers.tiers.disk_of` tells."""
        state = self._state
        self._note_wanted()
        wanted = self._wanted(disks)
        going = {model for model, each in state.residents.items() if each.is_leaving} | state.unreleased.keys()
        evicted = self._evicted(going)
        leaving_bytes = sum(map(self._ledger.bytes_of, going.union(evicted)))
        steps = plan_residency(
            wanted=wanted,
            residents=self._candidates(going.union(evicted)),
            free_bytes=self._ledger.free_bytes,
            leaving_bytes=leaving_bytes,
            disks_in_use={disk for each in state.residents.values() if (disk := each.busy_disk) is not None},
        )
        leaving_bytes += sum(map(self._ledger.bytes_of, steps.stop))
        awaited_bytes = sum(each.bytes for each in wanted if each.model in steps.waiting)
        state.awaited_bytes = max(0, awaited_bytes - leaving_bytes)
        # No failure of theirs: slots were opened since they were placed, as the next heartbeat says.
        for model in steps.refused:
            self._costs.hurry(self._served.by_id[model])
        stop = (*evicted, *steps.stop)
        by_model = {each.model: each for each in wanted}
        return PoolSteps(
            load=tuple(by_model[model] for model in steps.load),
            stop=stop,
            own_evictions=tuple(self._own_eviction(model) for model in stop if not self._is_told_to_leave(model)),
        )

    def _note_wanted(self) -> None:
        state, now_s = self._state, self._clock.monotonic_s()
        held = state.placement.hold
        absent = [model for model in held if model not in state.residents]
        known = {model: since_s for model, since_s in state.wanted_since_s.items() if model in held}
        state.wanted_since_s = dict.fromkeys(absent, now_s) | known

    def _wanted(self, disks: Mapping[str, int | None]) -> list[Wanted]:
        """Held, known, with no process and no account, and not in a backoff; those held longest first, then the
        smallest."""
        state, models, now_s = self._state, self._served.by_id, self._clock.monotonic_s()
        found = [
            Wanted(
                model=model,
                bytes=self._costs.need(models[model]).total_bytes,
                disk=disks.get(model),
            )
            for model in dict.fromkeys(state.placement.hold)
            if model in models
            and self._served.may_run(models[model])
            and model not in state.residents
            and model not in state.unreleased
            and not state.failures.is_pausing(model, models[model].identity, now_s)
        ]
        return sorted(found, key=lambda each: (state.wanted_since_s[each.model], each.bytes, each.model))

    def _evicted(self, going: AbstractSet[str]) -> list[str]:
        """What goes whether or not its bytes are needed: sent away by the placement, or due for a new load."""
        residents = {model: each for model, each in self._state.residents.items() if model not in going}
        told = [model for model in self._state.placement.evict if model in residents and self._is_told_to_leave(model)]
        due = [model for model, each in residents.items() if self._is_due_for_replacement(each)]
        return list(dict.fromkeys([*told, *due]))

    def _is_told_to_leave(self, model: str) -> bool:
        return model in self._state.placement.evict and model not in self._state.placement.hold

    def _is_due_for_replacement(self, resident: Resident) -> bool:
        if resident.outdated_since_s is None or resident.runner is None:
            return False
        is_over = self._clock.monotonic_s() - resident.outdated_since_s >= OUTDATED_GRACE_S
        return is_over or resident.runner.in_flight == 0

    def _candidates(self, leaving: AbstractSet[str]) -> list[Candidate]:
        state, now_ms, held = self._state, self._clock.now_ms(), set(self._state.placement.hold)
        staying = [each for model, each in state.residents.items() if model not in leaving]
        return [
            Candidate(
                model=each.model.id,
                bytes=self._ledger.bytes_of(each.model.id),
                keep_value=keep_value(
                    rate_per_s=state.rates.get(each.model.id, UseRate()).at(now_ms).per_s,
                    load_ms=self._costs.load_ms(each.model),
                ),
                is_idle=each.runner is not None and each.runner.in_flight == 0,
                is_held=each.model.id in held,
                is_pinned=each.model.is_pinned,
                is_settled=each.state is RunnerState.READY,
            )
            for each in staying
        ]

    def _own_eviction(self, model: str) -> Decision:
        """What to say of a runner that goes although the placement does not ask for it."""
        resident, now_ms = self._state.residents[model], self._clock.now_ms()
        if resident.outdated_since_s is None:
            size = self._ledger.bytes_of(model)
            return unheld_eviction(model, worker=self._worker_id, now_ms=now_ms, size=size)
        return outdated_eviction(
            resident.model,
            self._served.by_id.get(model),
            worker=self._worker_id,
            device=self._device_name,
            now_ms=now_ms,
            outdated_for_ms=int((self._clock.monotonic_s() - resident.outdated_since_s) * 1000),
            in_flight=resident.runner.in_flight if resident.runner is not None else 0,
        )
