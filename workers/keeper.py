"""The effects of a warm pool: one thread per runner from its spawn until its bytes are given back, and one per runner
that goes.

So a slow load or eviction delays nothing but the loads that need its bytes, and no request owns a load: a client that
leaves does not abort it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from tasks.errors import KeepwarmError, ModelLoadFailed
from workers.accounting import Accounting
from workers.clock import Clock
from workers.devices import Device
from workers.ledger import Ledger
from workers.messages import Ready
from workers.model_files import ModelFile
from workers.pool_state import PoolState
from workers.resident import Resident
from workers.runner import Runner
from workers.served_models import ServedModels

log = structlog.get_logger(__name__)

EARLY_DEATH_S = 10.0  # a runner that crashes sooner, and without any work, counts as a failed load


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


class Keeper:
    """`on_change`: a runner's state or slots have changed; `on_gone`: one has given its bytes back, or the device holds
    them still; `on_load`: a load has worked, with its ms and those since the placement began to want it. All are called
    without the lock of `state`."""

    def __init__(
        self,
        *,
        state: PoolState,
        served: ServedModels,
        ledger: Ledger,
        accounting: Accounting,
        device: Device,
        start_runner: StartRunner,
        clock: Clock,
        limits: PoolLimits,
        on_change: Callable[[], None],
        on_gone: Callable[[], None],
        on_load: Callable[[str, int, int], None],
    ) -> None:
        self._state = state
        self._served = served
        self._ledger = ledger
        self._accounting = accounting
        self._device = device
        self._start_runner = start_runner
        self._clock = clock
        self._limits = limits
        self._on_change = on_change
        self._on_gone = on_gone
        self._count_load = on_load

    # ---- each in a thread of its own

    def keep(self, residents: Iterable[Resident]) -> None:
        """Load them, account for them, wait for their end and give their bytes back."""
        for each in residents:
            in_background(f"keep-{each.model.id}", self._keep, each)

    def retire(self, residents: Iterable[Resident], grace_s: float) -> None:
        """Drain them for so long, park what is left, stop them."""
        for each in residents:
            in_background(f"retire-{each.model.id}", self._retire, each, grace_s)

    def measure_again(self, residents: Iterable[Resident]) -> None:
        for each in residents:
            in_background(f"measure-{each.model.id}", self._measure_again, each)

    # ---- a runner's life

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
                resident.model, runner, ready, window, load_ms=load_ms, may_close=not self._served.fit_together()
            )
            if runner.open(closed_slots=opening.closed_slots, slot_bytes=opening.slot_bytes):
                with self._state.lock:
                    wanted_s = self._state.wanted_since_s.pop(resident.model.id, started_s)
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
        broken = self._state.broken_adapters
        with self._state.lock:
            resident.broken_adapters = frozenset(ready.broken_adapters)
            for adapter in resident.model.adapters:
                reason = ready.broken_adapters.get(adapter.id)
                if reason is None:
                    broken.pop(adapter.id, None)
                else:
                    broken[adapter.id] = (adapter.identity, reason)
                    log.warning("adapter_broken", model=adapter.id, base=resident.model.id, reason=reason)

    def _lived_s(self, started_s: float) -> float:
        return self._clock.monotonic_s() - started_s

    def _spawn(self, resident: Resident) -> Runner:
        model = resident.model
        try:
            runner = self._start_runner(model, need_bytes=self._ledger.bytes_of(model.id), on_change=self._on_change)
        except OSError as error:
            raise ModelLoadFailed(f"The runner of '{model.id}' can't be started: {error}") from error
        with self._state.lock:
            resident.runner = runner
            is_leaving = resident.is_leaving
        if is_leaving:  # dismissed while it was being spawned: its retirer found no process to stop
            runner.stop(self._limits.stop_s)
        return runner

    def _record_success(self, resident: Resident, *, is_proven: bool) -> None:
        with self._state.lock:
            self._state.failures.loaded(resident.model.id, is_proven=is_proven)

    def _record_failure(self, resident: Resident, error: KeepwarmError) -> None:
        """A load that was stopped on purpose has not failed."""
        model = resident.model
        with self._state.lock:
            if resident.is_leaving:
                return
            failure = self._state.failures.record(
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
        is_released = runner is None or (runner.has_exited() and self._device.has_released(runner.pid))
        with self._state.emptier:
            del self._state.residents[model]
            self._accounting.note_end()
            if is_released:
                self._ledger.release(model)
            elif runner is not None:
                self._state.unreleased[model] = runner
                log.warning("device_dirty", model=model, pid=runner.pid, device=self._device.name)
            self._state.emptier.notify_all()
        self._on_gone()

    # ---- a runner's way out

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
            self._on_change()


def in_background(name: str, target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
