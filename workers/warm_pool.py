"""A worker's warm models: one runner process each, kept in line with the controller's placement and the byte ledger.

LoRA adapters have no process: they are part of their base, whose runner serves them too.

Decisions are taken under the pool's lock by `workers.residency` (pure); everything that takes time runs in threads
without the lock: one keeper per runner (load, account, wait for its end, release) and one retirer per runner that goes
(drain, park, stop). So a slow load or eviction delays nothing but the loads that need its bytes, and no request owns a
load: a client that leaves does not abort it.

A runner on its way out is never revived, and its model is loaded again only after the old process is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import structlog

from tasks.controller.decisions import Decision
from tasks.errors import KeepwarmError, ModelDoesNotFit, ModelLoadFailed
from tasks.fleet import ModelOffer, RunnerReport, RunnerState, WorkerPlacement, may_run_on
from tasks.jobs import JobId, Priority, WorkerId
from workers.accounting import Accounting
from workers.clock import Clock
from workers.costs import ModelCosts
from workers.devices import Device
from workers.eviction import Candidate, UseRate, keep_value
from workers.fitting import fit_models
from workers.lease_keeper import RunningAttempt
from workers.ledger import Ledger
from workers.load_failures import LoadFailures
from workers.measurements import Measurements
from workers.messages import Ready
from workers.model_files import ModelFile, ModelFolder
from workers.needs import Needs
from workers.offers import offer_of, offer_of_adapter, offer_of_unusable
from workers.own_evictions import outdated_eviction, unheld_eviction
from workers.residency import ResidencySteps, Wanted, plan_residency
from workers.resident import Resident
from workers.runner import Runner, RunnerSlot

log = structlog.get_logger(__name__)

EARLY_DEATH_S = 10.0  # a runner that crashes sooner, and without any work, counts as a failed load
OUTDATED_GRACE_S = 60.0  # a busy runner with settings that no longer hold may go on for so long, then it is drained


class StartRunner(Protocol):
    """Spawns the process of one model; it loads on its own. Raises OSError when it can't be spawned."""

    def __call__(self, model: ModelFile, *, need_bytes: int, on_change: Callable[[], None]) -> Runner: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Bounds in seconds."""

    drain_s: float = 2.0  # work of an evicted runner may end by itself for this long, then it is parked
    park_s: float = 5.0  # parking takes one engine step; then the process is stopped anyway
    stop_s: float = 5.0  # between the request to exit and the kill
    first_backoff_s: float = 1.0  # after a failed load; doubles with each failure
    last_backoff_s: float = 60.0


@dataclass(slots=True)
class _Usage:
    """Requests per model, kept beyond a single residency."""

    rates: dict[str, UseRate] = field(default_factory=dict)

    def touch(self, model: str, now_ms: int) -> None:
        self.rates[model] = self.rates.get(model, UseRate()).with_request(now_ms)

    def rate_per_s(self, model: str, now_ms: int) -> float:
        return self.rates.get(model, UseRate()).at(now_ms).per_s


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
        self._folder = folder
        self._ledger = ledger
        self._device = device
        self._start_runner = start_runner
        self._clock = clock
        self._disk_of = disk_of
        self._limits = limits
        self._listener = on_change
        self._count_load = on_load
        self._tell_eviction = on_evict
        self._lock = threading.Lock()
        self._updating = threading.Lock()  # of the models; taken before `_lock`
        self._emptier = threading.Condition(self._lock)  # a runner is gone
        self._residents: dict[str, Resident] = {}
        self._unreleased: dict[str, int] = {}  # model → pid of a gone process whose memory the device still holds
        self._failures = LoadFailures(first_pause_s=limits.first_backoff_s, last_pause_s=limits.last_backoff_s)
        self._wanted_since_s: dict[str, float] = {}  # held by the placement and not ready
        self._refusals: dict[str, str] = {}  # held by the placement, but they don't fit
        self._usage = _Usage()
        self._placement = WorkerPlacement()
        self._epoch = 0
        self._awaited_bytes = 0  # what loads that wait, for others to leave or for a disk, need of the free ones
        self._is_draining = False
        needs = needs or Needs(device)
        self._costs = ModelCosts(device=device, measurements=measurements, needs=needs, parked_memory=parked_memory)
        self._accounting = Accounting(device=device, ledger=ledger, costs=self._costs)
        self._models = self._fitted(folder)  # as they would be loaded here
        self._bases = _bases(self._models)
        self._broken_adapters: dict[str, tuple[str, str]] = {}  # id → identity, and why its base was loaded without it
        needs.listen(self._refit, lambda: self.is_busy)

    # ---- what it is

    @property
    def worker_id(self) -> WorkerId:
        return self._worker_id

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """What could be loaded."""
        return self._folder.models

    @property
    def epoch(self) -> int:
        """Of the newest placement that was applied."""
        return self._epoch

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def is_busy(self) -> bool:
        """Whether a runner comes, goes or works."""
        with self._lock:
            return any(each.is_busy for each in self._residents.values())

    @property
    def is_loading(self) -> bool:
        """Whether a runner comes."""
        with self._lock:
            return any(each.is_loading for each in self._residents.values())

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
        return self._bases.get(model, model)

    def urgent_slots(self) -> dict[str, int]:
        """The same for jobs that are more urgent than batch work, whose places they may share."""
        return self._room(lambda runner: runner.urgent_slots)

    def report(self) -> tuple[RunnerReport, ...]:
        with self._lock:
            residents = sorted(self._residents.values(), key=lambda each: each.model.id)
        return tuple(each.report(self._ledger.bytes_of(each.model.id)) for each in residents)

    def offers(self) -> tuple[ModelOffer, ...]:
        """Every model of the folder, with its cost here and, if it can't serve, the reason."""
        with self._lock:
            models = list(self._models.values())
            unusable = self._folder.unusable
        found = [offer for model in models for offer in self._offers_of(model)]
        return tuple(sorted([*found, *map(offer_of_unusable, unusable)], key=lambda offer: offer.id))

    # ---- jobs

    def take_slot(self, model: str, priority: Priority) -> RunnerSlot | None:
        """A place in the model's ready runner, or None."""
        runner = self._serving().get(model)
        if runner is not None and runner.closed_slots and runner.is_full:
            self._widen(runner)
        slot = runner.take_slot(priority, model) if runner else None
        if runner is not None and slot is not None:
            with self._lock:
                self._usage.touch(runner.model, self._clock.now_ms())
                if resident := self._residents.get(runner.model):
                    resident.has_worked = True
        return slot

    def cancel(self, job_id: JobId) -> bool:
        """End the job's sequence within a step; False when it is not here."""
        return any([runner.cancel(job_id) for runner in self._runners()])

    def running_attempts(self) -> list[RunningAttempt]:
        """What runs here, with the engine steps since it began: whose lease may be renewed."""
        return [attempt for runner in self._runners() for attempt in runner.running_attempts()]

    # ---- desired state

    def apply(self, placement: WorkerPlacement, epoch: int) -> None:
        """Follow this placement from now on; one with an older epoch than the newest is ignored."""
        with self._lock:
            if epoch < self._epoch:
                return
            self._placement, self._epoch = placement, epoch
        self.reconcile()

    def update_models(self, folder: ModelFolder) -> None:
        """Serve this scan's models from now on. A runner that was loaded otherwise is drained and replaced, as soon as
        it is idle or has gone on for OUTDATED_GRACE_S; names, pins and the like count at once."""
        with self._updating:
            self._adopt(folder)
        self.reconcile()
        self._notify()

    def _adopt(self, folder: ModelFolder) -> None:
        """One at a time: the caller holds `_updating`."""
        now_s = self._clock.monotonic_s()
        models = self._fitted(folder)
        with self._lock:
            self._folder = folder
            self._models = models
            self._bases = _bases(models)  # replaced, never changed: read without the lock
            self._ledger.set_pinned({model.id for model in models.values() if model.is_pinned})
            for resident in self._residents.values():
                current = self._models.get(resident.model.id)
                if current is not None and current.loads_like(resident.model) and self._may_run(current):
                    resident.model, resident.outdated_since_s = current, None
                elif resident.outdated_since_s is None:
                    resident.outdated_since_s = now_s

    def reconcile(self) -> None:
        """One step towards the placement. Never blocks on a runner."""
        self._collect_unreleased()
        with self._lock:
            if self._is_draining:
                return
            self._note_wanted()
            wanted = self._wanted()
            steps = self._plan(wanted)
            disks = {each.model: each.disk for each in wanted}
            arriving = [resident for model in steps.load if (resident := self._admit(model, disks[model]))]
            own = [self._own_eviction(model) for model in steps.stop if not self._is_told_to_leave(model)]
            leaving = [self._dismiss(self._residents[model]) for model in steps.stop]
            grown = [each for each in self._residents.values() if each.take_remeasuring()]
        for resident in grown:
            _in_background(f"measure-{resident.model.id}", self._measure_again, resident)
        for resident in leaving:
            _in_background(f"retire-{resident.model.id}", self._retire, resident, self._limits.drain_s)
        for resident in arriving:
            _in_background(f"keep-{resident.model.id}", self._keep, resident)
        for decision in own:
            _in_background(f"tell-{decision.model}", self._tell_eviction, decision)
        if arriving or leaving:
            self._notify()

    def drain(self, deadline_s: float) -> None:
        """Take nothing new, let work end for `deadline_s`, park the rest, stop all runners. Returns when all are gone.

        Bounded by the deadline and the limits of parking and stopping; what is left then is killed."""
        with self._lock:
            self._is_draining = True
            leaving = [self._dismiss(each) for each in self._residents.values() if not each.is_leaving]
        for resident in leaving:
            _in_background(f"retire-{resident.model.id}", self._retire, resident, deadline_s)
        self._notify()
        if not self._wait_empty(deadline_s + self._limits.park_s + self._limits.stop_s):
            self._kill_all()
            self._wait_empty(self._limits.stop_s)

    def close(self) -> None:
        """Drain without waiting for work to end. Leaves no process behind."""
        self.drain(0.0)

    # ---- decisions, under the lock

    def _note_wanted(self) -> None:
        now_s, held = self._clock.monotonic_s(), self._placement.hold
        absent = [model for model in held if model not in self._residents]
        known = {model: since_s for model, since_s in self._wanted_since_s.items() if model in held}
        self._wanted_since_s = dict.fromkeys(absent, now_s) | known

    def _plan(self, wanted: Sequence[Wanted]) -> ResidencySteps:
        now_ms = self._clock.now_ms()
        held = set(self._placement.hold)
        evicted = [
            model
            for model in self._placement.evict
            if model not in held and model in self._residents and not self._residents[model].is_leaving
        ]
        going = {model for model, each in self._residents.items() if each.is_leaving} | self._unreleased.keys()
        evicted += [
            model
            for model, each in self._residents.items()
            if model not in going and model not in evicted and self._is_due_for_replacement(each)
        ]
        candidates = [
            self._candidate(each, held, now_ms)
            for model, each in self._residents.items()
            if model not in going and model not in evicted
        ]
        leaving_bytes = sum(self._ledger.bytes_of(model) for model in going.union(evicted))
        steps = plan_residency(
            wanted=wanted,
            residents=candidates,
            free_bytes=self._ledger.free_bytes,
            leaving_bytes=leaving_bytes,
            disks_in_use={disk for each in self._residents.values() if (disk := each.busy_disk) is not None},
        )
        leaving_bytes += sum(map(self._ledger.bytes_of, steps.stop))
        awaited_bytes = sum(each.bytes for each in wanted if each.model in steps.waiting)
        self._awaited_bytes = max(0, awaited_bytes - leaving_bytes)
        self._refusals = {model: self._refusal(model, reason) for model, reason in steps.refused.items()}
        for model in steps.refused:
            self._costs.hurry(self._models[model])
        return ResidencySteps(
            load=steps.load, stop=(*evicted, *steps.stop), waiting=steps.waiting, refused=steps.refused
        )

    def _wanted(self) -> list[Wanted]:
        """Held, known, with no process and no account, and not in a backoff; those held longest first, then the
        smallest."""
        now_s = self._clock.monotonic_s()
        found = [
            Wanted(
                model=model,
                bytes=self._costs.need(self._models[model]).total_bytes,
                disk=self._disk_of(self._models[model].path),
            )
            for model in dict.fromkeys(self._placement.hold)
            if model in self._models
            and self._may_run(self._models[model])
            and model not in self._residents
            and model not in self._unreleased
            and not self._failures.is_pausing(model, self._models[model].identity, now_s)
        ]
        return sorted(found, key=lambda each: (self._wanted_since_s[each.model], each.bytes, each.model))

    def _is_due_for_replacement(self, resident: Resident) -> bool:
        if resident.outdated_since_s is None or resident.runner is None:
            return False
        is_over = self._clock.monotonic_s() - resident.outdated_since_s >= OUTDATED_GRACE_S
        return is_over or resident.runner.in_flight == 0

    def _is_told_to_leave(self, model: str) -> bool:
        return model in self._placement.evict and model not in self._placement.hold

    def _own_eviction(self, model: str) -> Decision:
        """What to say of a runner that goes although the placement does not ask for it."""
        resident, now_ms = self._residents[model], self._clock.now_ms()
        if resident.outdated_since_s is None:
            size = self._ledger.bytes_of(model)
            return unheld_eviction(model, worker=self._worker_id, now_ms=now_ms, size=size)
        return outdated_eviction(
            resident.model,
            self._models.get(model),
            worker=self._worker_id,
            device=self._device.name,
            now_ms=now_ms,
            outdated_for_ms=int((self._clock.monotonic_s() - resident.outdated_since_s) * 1000),
            in_flight=resident.runner.in_flight if resident.runner is not None else 0,
        )

    def _candidate(self, resident: Resident, held: set[str], now_ms: int) -> Candidate:
        model = resident.model
        rate = self._usage.rate_per_s(model.id, now_ms)
        return Candidate(
            model=model.id,
            bytes=self._ledger.bytes_of(model.id),
            keep_value=keep_value(rate_per_s=rate, load_ms=self._costs.load_ms(model)),
            is_idle=resident.runner is not None and resident.runner.in_flight == 0,
            is_held=model.id in held,
            is_pinned=model.is_pinned,
            is_settled=resident.state is RunnerState.READY,
        )

    def _admit(self, name: str, disk: int | None) -> Resident | None:
        """Reserve before anything is spawned: from here on the model counts as resident, so nobody loads it twice."""
        model = self._models[name]
        need = self._costs.need(model)
        try:
            self._ledger.reserve(model.id, need, is_pinned=model.is_pinned)
        except ModelDoesNotFit as error:  # a measurement came in since the plan was made: the next one knows it
            log.info("load_postponed", model=model.id, reason=str(error))
            return None
        resident = Resident(model, self._clock.now_ms(), disk)
        self._residents[model.id] = resident
        log.info("load_started", model=model.id, reserved_bytes=need.total_bytes, epoch=self._epoch)
        return resident

    def _dismiss(self, resident: Resident) -> Resident:
        resident.is_leaving = True
        log.info("eviction_started", model=resident.model.id, epoch=self._epoch, is_draining=self._is_draining)
        return resident

    def _refusal(self, model: str, reason: str) -> str:
        return f"{self._ledger.refusal(model, self._costs.need(self._models[model]))}; {reason}."

    # ---- the keeper: one thread per runner, from spawn to release

    def _keep(self, resident: Resident) -> None:
        try:
            self._live(resident)
        except KeepwarmError as error:
            self._record_failure(resident, error)
        except Exception as error:
            log.exception("keeper_failed", model=resident.model.id)
            self._record_failure(resident, ModelLoadFailed(str(error)))
        finally:
            self._forget(resident)

    def _live(self, resident: Resident) -> None:
        started_s = self._clock.monotonic_s()
        window = self._accounting.open_window()
        runner = self._spawn(resident)
        try:
            ready = runner.wait_loaded()
            load_ms = int(self._lived_s(started_s) * 1000)
            self._note_broken(resident, ready)
            opening = self._accounting.settle(
                resident.model, runner, ready, window, load_ms=load_ms, may_close=not self._has_room_for_all()
            )
            if runner.open(closed_slots=opening.closed_slots, slot_bytes=opening.slot_bytes):
                with self._lock:
                    wanted_s = self._wanted_since_s.pop(resident.model.id, started_s)
                self._count_load(resident.model.id, load_ms, int(self._lived_s(wanted_s) * 1000))
                self._record_success(resident, is_proven=False)
                runner.wait_gone()
            if resident.has_worked or self._lived_s(started_s) > EARLY_DEATH_S:
                self._record_success(resident, is_proven=True)
            elif runner.failure is not None:
                raise runner.failure  # no job can be blamed: without a pause it would crash in a loop
        finally:
            runner.stop(self._limits.stop_s)  # returns at once when it is gone already
            runner.wait_gone(self._limits.stop_s)

    def _note_broken(self, resident: Resident, ready: Ready) -> None:
        """Adapters that the process could not load: it serves without them, and they say why."""
        with self._lock:
            resident.broken_adapters = frozenset(ready.broken_adapters)
            for adapter in resident.model.adapters:
                reason = ready.broken_adapters.get(adapter.id)
                if reason is None:
                    self._broken_adapters.pop(adapter.id, None)
                else:
                    self._broken_adapters[adapter.id] = (adapter.identity, reason)
                    log.warning("adapter_broken", model=adapter.id, base=resident.model.id, reason=reason)

    def _lived_s(self, started_s: float) -> float:
        return self._clock.monotonic_s() - started_s

    def _spawn(self, resident: Resident) -> Runner:
        model = resident.model
        try:
            runner = self._start_runner(model, need_bytes=self._ledger.bytes_of(model.id), on_change=self._notify)
        except OSError as error:
            raise ModelLoadFailed(f"The runner of '{model.id}' can't be started: {error}") from error
        with self._lock:
            resident.runner = runner
            is_leaving = resident.is_leaving
        if is_leaving:  # dismissed while it was being spawned: its retirer found no process to stop
            runner.stop(self._limits.stop_s)
        return runner

    def _record_success(self, resident: Resident, *, is_proven: bool) -> None:
        with self._lock:
            self._failures.loaded(resident.model.id, is_proven=is_proven)

    def _record_failure(self, resident: Resident, error: KeepwarmError) -> None:
        """A load that was stopped on purpose has not failed."""
        model = resident.model
        with self._lock:
            if resident.is_leaving:
                return
            failure = self._failures.record(
                model.id,
                identity=model.identity,
                reason=str(error),
                is_crash=error.is_retryable,
                now_s=self._clock.monotonic_s(),
            )
        log.warning(
            "load_failed", model=model.id, reason=failure.reason, count=failure.count, retry_in_s=failure.pause_s
        )

    def _forget(self, resident: Resident) -> None:
        """The process is gone: give its bytes back if the device agrees, and see who waited for them."""
        model, runner = resident.model.id, resident.runner
        is_released = runner is None or self._device.has_released(runner.pid)
        with self._emptier:
            del self._residents[model]
            self._accounting.note_end()
            if is_released:
                self._ledger.release(model)
            elif runner is not None:
                self._unreleased[model] = runner.pid
                log.warning("device_dirty", model=model, pid=runner.pid, device=self._device.name)
            self._emptier.notify_all()
        self.reconcile()
        self._notify()

    def _collect_unreleased(self) -> None:
        with self._lock:
            waiting = list(self._unreleased.items())
        for model, pid in waiting:
            if self._device.has_released(pid):
                with self._lock:
                    self._unreleased.pop(model, None)
                    self._ledger.release(model)

    # ---- the retirer: one thread per runner that goes

    def _retire(self, resident: Resident, grace_s: float) -> None:
        runner = resident.runner
        if runner is None:
            return  # its keeper sees `is_leaving` right after the spawn
        runner.begin_drain()
        if not runner.wait_idle(grace_s):
            runner.park_all()
            runner.wait_idle(self._limits.park_s)
        self._measure_again(resident)
        runner.stop(self._limits.stop_s)

    def _measure_again(self, resident: Resident) -> None:
        if resident.runner is not None and self._accounting.measure_again(resident.model, resident.runner):
            self._notify()

    def _kill_all(self) -> None:
        with self._lock:
            runners = [each.runner for each in self._residents.values() if each.runner]
        for runner in runners:
            runner.stop(0.0)

    def _wait_empty(self, timeout_s: float) -> bool:
        with self._emptier:
            return self._emptier.wait_for(lambda: not self._residents, timeout_s)

    # ---- figures

    def _fitted(self, folder: ModelFolder) -> dict[str, ModelFile]:
        with self._lock:
            warm = {model: each.model for model, each in self._residents.items()}
        self._costs.keep_only(folder.models)
        # A pin to other devices takes no room here.
        models = [each if self._may_run(each) else replace(each, is_pinned=False) for each in folder.models]
        fitted = fit_models(models, self.budget_bytes, lambda model: self._costs.need(model).total_bytes, warm)
        for each in fitted.values():
            if each.reduced is not None:
                log.info("model_reduced", model=each.id, to=each.reduced)
            if each.draft_problem is not None:
                log.warning("model_without_draft", model=each.id, reason=each.draft_problem)
        return fitted

    def _has_room_for_all(self) -> bool:
        """Whether memory is no matter here: then a conversation finds its slot as it left it, rather than in the memory
        for parked states."""
        with self._lock:
            models = [each for each in self._models.values() if self._may_run(each)]
        return sum(self._costs.need(each).total_bytes for each in models) <= self.budget_bytes

    def _refit(self) -> None:
        """A dry run knows better what a model needs."""
        with self._updating:
            self._adopt(self._folder)  # read inside: a scan that comes in meanwhile must not be undone
        self.reconcile()
        self._notify()

    def _offers_of(self, model: ModelFile) -> list[ModelOffer]:
        """Of the model and its adapters."""
        offer = offer_of(model, self._costs, failure=self._failure_of(model), may_retry=self._may_retry(model))
        with self._lock:
            broken = dict(self._broken_adapters)
        reasons = {
            each.id: broken[each.id][1] for each in model.adapters if broken.get(each.id, ("",))[0] == each.identity
        }
        return [offer, *(offer_of_adapter(each, offer, failure=reasons.get(each.id)) for each in model.adapters)]

    def _may_run(self, model: ModelFile) -> bool:
        return may_run_on(model.devices, self._device.name)

    def _may_retry(self, model: ModelFile) -> bool:
        with self._lock:
            return self._failures.may_retry(model.id, model.identity, self._clock.monotonic_s())

    def _failure_of(self, model: ModelFile) -> str | None:
        """Why the model can't serve here: its last load, the placement, or simply its size."""
        with self._lock:
            reason = self._failures.final_reason(model.id, model.identity)
            if reason is not None:
                return reason
            if model.id in self._refusals:
                return self._refusals[model.id]
            if model.id in self._residents:
                return None
        if not self._may_run(model):
            return f"'{model.id}' may run on {', '.join(model.devices)} only; this worker has {self.device_name}."
        need = self._costs.need(model)
        pinned = sum(each.bytes for each in self._ledger.accounts() if each.is_pinned and each.model != model.id)
        if need.total_bytes <= self.budget_bytes - pinned:
            return None
        self._costs.hurry(model)
        return f"{self._ledger.refusal(model.id, need)}."

    def _room(self, places: Callable[[Runner], int]) -> dict[str, int]:
        """Of every model that is ready here: these places, and those that could be opened."""
        spare = self._ledger.free_bytes - self._awaited_bytes
        return {
            model: places(runner) + _openable(runner, spare)
            for model, runner in self._serving().items()
            if runner.state is RunnerState.READY
        }

    def _widen(self, runner: Runner) -> None:
        """Open one more slot, where there is memory for it that no load waits for. Decided and told under the lock, so
        that the process hears of one slot after the other."""
        with self._lock:
            is_possible = runner.closed_slots and runner.state is RunnerState.READY
            if is_possible and self._accounting.pay_slot(runner, kept_bytes=self._awaited_bytes):
                runner.widen()

    def _serving(self) -> dict[str, Runner]:
        """Runners that may get new work, by all models that they serve."""
        with self._lock:
            return {
                served: each.runner
                for model, each in self._residents.items()
                if each.runner and not each.is_leaving
                for served in (model, *each.adapters)
            }

    def _runners(self) -> list[Runner]:
        with self._lock:
            return [each.runner for each in self._residents.values() if each.runner]

    def _notify(self) -> None:
        try:
            self._listener()
        except Exception:
            log.exception("pool_listener_failed")


def _openable(runner: Runner, spare_bytes: int) -> int:
    """Closed slots for which there is memory."""
    if not runner.closed_slots or spare_bytes <= 0:
        return 0
    return min(runner.closed_slots, spare_bytes // runner.slot_bytes)


def _bases(models: Mapping[str, ModelFile]) -> dict[str, str]:
    """The base of each adapter."""
    return {adapter.id: model.id for model in models.values() for adapter in model.adapters}


def _in_background(name: str, target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
