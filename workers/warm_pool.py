"""A worker's warm models: one runner process each, kept in line with the controller's placement and the byte ledger.

LoRA adapters have no process: they are part of their base, whose runner serves them too.

What the pool knows stands in `workers.pool_state`, under one lock. Under it `workers.pool_planner` decides; everything
that takes time runs without it, in the threads of `workers.keeper`.

A runner on its way out is never revived, and its model is loaded again only after the old process is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from tasks.controller.decisions import Decision
from tasks.errors import ModelDoesNotFit
from tasks.fleet import ModelOffer, RunnerReport, RunnerState, WorkerPlacement, openable_slots
from tasks.jobs import JobId, Priority, WorkerId
from workers.accounting import Accounting
from workers.clock import Clock
from workers.costs import ModelCosts
from workers.devices import Device
from workers.keeper import Keeper, PoolLimits, StartRunner, in_background
from workers.lease_keeper import RunningAttempt
from workers.ledger import Ledger
from workers.load_failures import LoadFailures
from workers.measurements import Measurements
from workers.model_files import ModelFile, ModelFolder
from workers.needs import Needs
from workers.offers import offer_of, offer_of_adapter, offer_of_unusable
from workers.pool_planner import PoolPlanner
from workers.pool_state import PoolState
from workers.residency import Wanted
from workers.resident import Resident
from workers.runner import Runner, RunnerSlot
from workers.served_models import ServedModels

log = structlog.get_logger(__name__)


class WarmPool:
    """Implements `tasks.ports.ModelHost`. All methods may be called from any thread.

    `on_change` is called without locks whenever a runner changes its state, or its slots change between full and not
    full, `on_load` with the model and the milliseconds of a load that has worked, and of all since the placement began
    to want it: others may have had to leave first; `on_evict`, in a thread of its own, with the reason why a runner
    leaves that no placement sent away. `reconcile` should also be called now and then: backoffs end and devices release
    memory without an event.

    `parked_memory`: what a runner may park states in, as in `ModelFile.parked_bytes`; 0 where that is not the memory
    that the ledger is about.
    """

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        folder: ModelFolder,
        ledger: Ledger,
        device: Device,
        measurements: Measurements,
        start_runner: StartRunner,
        clock: Clock,
        limits: PoolLimits,
        parked_memory: int | None = 0,
        needs: Needs | None = None,
        disk_of: Callable[[Path], int | None] = lambda path: None,
        on_change: Callable[[], None] = lambda: None,
        on_load: Callable[[str, int, int], None] = lambda model, load_ms, swap_ms: None,
        on_evict: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        """Without `needs` models are estimated by the formula alone. `disk_of`: as `workers.tiers.disk_of`."""
        self._worker_id = worker_id
        self._ledger = ledger
        self._device = device
        self._clock = clock
        self._limits = limits
        self._listener = on_change
        self._tell_eviction = on_evict
        self._disk_of = disk_of
        self._updating = threading.Lock()  # of the models; taken before the state's
        needs = needs or Needs(device)
        self._costs = ModelCosts(device=device, measurements=measurements, needs=needs, parked_memory=parked_memory)
        self._accounting = Accounting(device=device, ledger=ledger, costs=self._costs)
        self._state = PoolState(LoadFailures(first_pause_s=limits.first_backoff_s, last_pause_s=limits.last_backoff_s))
        self._served = ServedModels(
            folder, costs=self._costs, budget_bytes=ledger.budget_bytes, device_name=device.name
        )
        self._planner = PoolPlanner(
            worker_id=worker_id,
            device_name=device.name,
            state=self._state,
            served=self._served,
            ledger=ledger,
            costs=self._costs,
            clock=clock,
        )
        self._keeper = Keeper(
            state=self._state,
            served=self._served,
            ledger=ledger,
            accounting=self._accounting,
            device=device,
            start_runner=start_runner,
            clock=clock,
            limits=limits,
            on_change=self._notify,
            on_gone=self._reconcile_and_notify,
            on_load=on_load,
        )
        needs.listen(self._refit, lambda: self.is_busy)

    # ---- what it is

    @property
    def worker_id(self) -> WorkerId:
        return self._worker_id

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """What could be loaded."""
        return self._served.folder.models

    @property
    def epoch(self) -> int:
        """Of the newest placement that was applied."""
        return self._state.epoch

    @property
    def is_draining(self) -> bool:
        return self._state.is_draining

    @property
    def is_busy(self) -> bool:
        """Whether a runner comes, goes or works."""
        with self._state.lock:
            return any(each.is_busy for each in self._state.residents.values())

    @property
    def is_loading(self) -> bool:
        """Whether a runner comes."""
        with self._state.lock:
            return any(each.is_loading for each in self._state.residents.values())

    @property
    def used_bytes(self) -> int:
        """Reserved and in use."""
        return self._ledger.used_bytes + self._ledger.reserved_bytes

    @property
    def budget_bytes(self) -> int:
        return self._ledger.budget_bytes

    @property
    def device_name(self) -> str:
        return self._device.name

    def free_slots(self) -> dict[str, int]:
        """Every model that is ready here, with the jobs of any priority that it could take right now.

        Adapters are there as well; they share the slots of their base."""
        return self._room(lambda runner: runner.free_slots)

    def runner_of(self, model: str) -> str:
        """The model whose runner has the slots: its base, of an adapter."""
        return self._served.runner_of(model)

    def urgent_slots(self) -> dict[str, int]:
        """The same for jobs that are more urgent than batch work, whose places they may share."""
        return self._room(lambda runner: runner.urgent_slots)

    def report(self) -> tuple[RunnerReport, ...]:
        with self._state.lock:
            residents = sorted(self._state.residents.values(), key=lambda each: each.model.id)
        return tuple(each.report(self._ledger.bytes_of(each.model.id)) for each in residents)

    def offers(self) -> tuple[ModelOffer, ...]:
        """Every model of the folder, with its cost here and, if it can't serve, the reason."""
        with self._state.lock:
            models, unusable = list(self._served.by_id.values()), self._served.folder.unusable
        found = [offer for model in models for offer in self._offers_of(model)]
        return tuple(sorted([*found, *map(offer_of_unusable, unusable)], key=lambda offer: offer.id))

    # ---- jobs

    def take_slot(self, model: str, priority: Priority) -> RunnerSlot | None:
        """A place in the model's ready runner, or None."""
        runner = self._state.serving().get(model)
        if runner is None:
            return None
        if runner.closed_slots and runner.is_full:
            self._widen(runner)
        slot = runner.take_slot(priority, model)
        if slot is not None:
            self._state.note_request(runner.model, self._clock.now_ms())
        return slot

    def cancel(self, job_id: JobId) -> bool:
        """End the job's sequence within a step; False when it is not here."""
        return any([runner.cancel(job_id) for runner in self._state.runners()])

    def lose(self, job_id: JobId, number: int) -> None:
        """Give up this attempt, wherever it runs; a newer one of the job goes on."""
        for runner in self._state.runners():
            runner.lose(job_id, number)

    def running_attempts(self) -> list[RunningAttempt]:
        """What runs here, with the engine steps since it began: whose lease may be renewed."""
        return [attempt for runner in self._state.runners() for attempt in runner.running_attempts()]

    # ---- desired state

    def apply(self, placement: WorkerPlacement, epoch: int) -> None:
        """Follow this placement from now on; one with an older epoch than the newest is ignored."""
        with self._state.lock:
            if epoch < self._state.epoch:
                return
            self._state.placement, self._state.epoch = placement, epoch
        self.reconcile()

    def update_models(self, folder: ModelFolder) -> None:
        """Serve this scan's models from now on. A runner that was loaded otherwise is drained and replaced, as soon as
        it is idle or has gone on for OUTDATED_GRACE_S; names, pins and the like count at once."""
        with self._updating:
            self._adopt(folder)
        self._reconcile_and_notify()

    def _adopt(self, folder: ModelFolder) -> None:
        """One at a time: the caller holds `_updating`."""
        now_s, state = self._clock.monotonic_s(), self._state
        with state.lock:
            warm = {model: each.model for model, each in state.residents.items()}
        fitted = self._served.fitted(folder, warm)
        with state.lock:
            self._served.put(folder, fitted)
            self._ledger.set_pinned({model.id for model in fitted.values() if model.is_pinned})
            for resident in state.residents.values():
                current = fitted.get(resident.model.id)
                if current is not None and current.loads_like(resident.model) and self._served.may_run(current):
                    resident.model, resident.outdated_since_s = current, None
                elif resident.outdated_since_s is None:
                    resident.outdated_since_s = now_s

    def reconcile(self) -> None:
        """One step towards the placement. Never blocks on a runner."""
        self._collect_unreleased()
        state = self._state
        disks = self._disks_of_absent()
        with state.lock:
            if state.is_draining:
                return
            steps = self._planner.plan(disks)
            arriving = [resident for wanted in steps.load if (resident := self._admit(wanted))]
            leaving = [self._dismiss(state.residents[model]) for model in steps.stop]
            grown = [each for each in state.residents.values() if each.take_remeasuring()]
        self._keeper.measure_again(grown)
        self._keeper.retire(leaving, self._limits.drain_s)
        self._keeper.keep(arriving)
        for decision in steps.own_evictions:
            in_background(f"tell-{decision.model}", self._tell_eviction, decision)
        if arriving or leaving:
            self._notify()

    def _disks_of_absent(self) -> dict[str, int | None]:
        """Of models that are to be loaded: as `workers.tiers.disk_of`, which takes its time."""
        with self._state.lock:
            absent = [model for model in self._state.placement.hold if model not in self._state.residents]
        known = self._served.by_id
        return {model: self._disk_of(known[model].path) for model in absent if model in known}

    def _admit(self, wanted: Wanted) -> Resident | None:
        """Reserve before anything is spawned: from here on the model counts as resident, so nobody loads it twice."""
        model = self._served.by_id[wanted.model]
        need = self._costs.need(model)
        try:
            self._ledger.reserve(model.id, need, is_pinned=model.is_pinned)
        except ModelDoesNotFit as error:  # a measurement came in since the plan was made: the next one knows it
            log.info("load_postponed", model=model.id, reason=str(error))
            return None
        resident = Resident(model, self._clock.now_ms(), wanted.disk)
        self._state.residents[model.id] = resident
        log.info("load_started", model=model.id, reserved_bytes=need.total_bytes, epoch=self._state.epoch)
        return resident

    def _dismiss(self, resident: Resident) -> Resident:
        resident.is_leaving = True
        is_draining, epoch = self._state.is_draining, self._state.epoch
        log.info("eviction_started", model=resident.model.id, epoch=epoch, is_draining=is_draining)
        return resident

    def _collect_unreleased(self) -> None:
        unreleased = self._state.unreleased
        with self._state.lock:
            waiting = list(unreleased.items())
        for model, runner in waiting:
            if runner.has_exited() and self._device.has_released(runner.pid):
                with self._state.lock:
                    if unreleased.get(model) is runner:  # nobody was quicker: the account is not a new load's
                        del unreleased[model]
                        self._ledger.release(model)

    def drain(self, deadline_s: float) -> None:
        """Take nothing new, let work end for `deadline_s`, park the rest, stop all runners. Returns when all are gone.

        Bounded by the deadline and the limits of parking and stopping; what is left then is killed."""
        state = self._state
        with state.lock:
            state.is_draining = True
            leaving = [self._dismiss(each) for each in state.residents.values() if not each.is_leaving]
        self._keeper.retire(leaving, deadline_s)
        self._notify()
        if not state.wait_empty(deadline_s + self._limits.park_s + self._limits.stop_s):
            for runner in state.runners():
                runner.stop(0.0)
            state.wait_empty(self._limits.stop_s)

    def close(self) -> None:
        """Drain without waiting for work to end. Leaves no process behind."""
        self.drain(0.0)

    # ---- figures

    def _refit(self) -> None:
        """A dry run knows better what a model needs."""
        with self._updating:
            self._adopt(self._served.folder)  # read inside: a scan that comes in meanwhile must not be undone
        self._reconcile_and_notify()

    def _offers_of(self, model: ModelFile) -> list[ModelOffer]:
        """Of the model and its adapters."""
        with self._state.lock:
            may_retry = self._state.failures.may_retry(model.id, model.identity, self._clock.monotonic_s())
            broken = dict(self._state.broken_adapters)
        offer = offer_of(model, self._costs, failure=self._failure_of(model), may_retry=may_retry)
        reasons = {
            each.id: broken[each.id][1] for each in model.adapters if broken.get(each.id, ("",))[0] == each.identity
        }
        return [offer, *(offer_of_adapter(each, offer, failure=reasons.get(each.id)) for each in model.adapters)]

    def _failure_of(self, model: ModelFile) -> str | None:
        """Why the model can't serve here: its last load, the placement, or simply its size."""
        with self._state.lock:
            reason = self._state.failures.final_reason(model.id, model.identity)
            if reason is not None:
                return reason
            if model.id in self._state.residents:
                return None
        if not self._served.may_run(model):
            return f"'{model.id}' may run on {', '.join(model.devices)} only; this worker has {self.device_name}."
        need = self._costs.need(model)
        pinned = sum(each.bytes for each in self._ledger.accounts() if each.is_pinned and each.model != model.id)
        if need.total_bytes <= self.budget_bytes - pinned:
            return None
        self._costs.hurry(model)
        return f"{self._ledger.refusal(model.id, need)}."

    def _room(self, places: Callable[[Runner], int]) -> dict[str, int]:
        """Of every model that is ready here: these places, and those that could be opened."""
        spare = self._ledger.free_bytes - self._state.awaited_bytes
        return {
            model: places(runner) + openable_slots(runner.closed_slots, runner.slot_bytes, spare)
            for model, runner in self._state.serving().items()
            if runner.state is RunnerState.READY
        }

    def _widen(self, runner: Runner) -> None:
        """Open one more slot, where there is memory for it that no load waits for."""
        with self._state.lock:
            is_possible = runner.state is RunnerState.READY
            is_open = is_possible and self._accounting.open_slot(runner, kept_bytes=self._state.awaited_bytes)
        if is_open:
            runner.tell_open()

    def _reconcile_and_notify(self) -> None:
        self.reconcile()
        self._notify()

    def _notify(self) -> None:
        try:
            self._listener()
        except Exception:
            log.exception("pool_listener_failed")
