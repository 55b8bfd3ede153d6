"""Measure what a runner takes, and put it into the ledger in place of what was reserved. Effects, no decisions."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import structlog

from tasks.errors import ModelDoesNotFit
from tasks.fleet import ModelKind
from workers.costs import ModelCosts
from workers.devices import Device, LoadWindow, ModelMapping
from workers.ledger import Ledger
from workers.messages import Ready
from workers.model_files import ModelFile
from workers.needs import overhead_bytes
from workers.runner import Runner

log = structlog.get_logger(__name__)

WORTH_CLOSING = 0.9  # of the cache, at least: what is written to already can't be closed


@dataclass(frozen=True, slots=True)
class Opening:
    """Slots that stay closed when a runner becomes ready, and what each of them will take."""

    closed_slots: int = 0
    slot_bytes: int = 0

    @property
    def closed_bytes(self) -> int:
        return self.closed_slots * self.slot_bytes


def opening_of(kind: ModelKind, ready: Ready) -> Opening:
    """Where the cache takes memory only when it is written to, one slot is enough to begin with; what encoders have is
    one cache for all inputs. Pure."""
    given_back = sum(end - start for start, end in ready.untouched) if kind is ModelKind.GENERATE else 0
    if not given_back or given_back < WORTH_CLOSING * ready.kv_bytes or ready.slots < 2:
        return Opening()
    return Opening(closed_slots=ready.slots - 1, slot_bytes=ready.kv_bytes // ready.slots)


class Accounting:
    """Thread-safe."""

    def __init__(self, *, device: Device, ledger: Ledger, costs: ModelCosts) -> None:
        self._device = device
        self._ledger = ledger
        self._costs = costs
        self._lock = threading.Lock()  # of this number, and of accounts that are compared with what was measured
        self._num_moves = 0  # runners that began to take or to give back memory

    def open_window(self) -> LoadWindow:
        """A load begins; `settle` takes the window back when it is done."""
        with self._lock:
            self._num_moves += 1
            num_moves = self._num_moves
        return LoadWindow(self._device.free_mark(), num_moves)  # the mark last: another load in between is seen

    def note_end(self) -> None:
        """A runner is gone: what is free now says nothing about the loads that are under way."""
        with self._lock:
            self._num_moves += 1

    def settle(
        self, model: ModelFile, runner: Runner, ready: Ready, window: LoadWindow, *, load_ms: int, may_close: bool
    ) -> Opening:
        """Replace the reservation by the measured bytes, less those of the slots that are left closed. Raises
        ModelDoesNotFit when they are too many."""
        reported = ready.weight_bytes + ready.adapter_bytes + ready.kv_bytes + ready.compute_bytes
        told = self._measure(model, runner, ready)
        if told is None:
            told = window.taken_bytes(self._device.free_mark(), self._num_moves)
        # Pages that no step has touched yet are not measured; a device that tells nothing leaves only the report.
        measured = reported + overhead_bytes(self._device, model.shape) if told is None else max(told, reported, 0)
        self._costs.record_load(model, measured_bytes=measured, load_ms=load_ms)
        opening = opening_of(model.kind, ready) if may_close else Opening()
        held = measured - opening.closed_bytes
        self._ledger.commit(model.id, held + self._costs.parked_bytes(model))
        log.info(
            "load_finished",
            model=model.id,
            pid=runner.pid,
            bytes=held,
            load_ms=load_ms,
            untouched=",".join(f"{start:x}-{end:x}" for start, end in ready.untouched),
        )
        return opening

    def measure_again(self, model: ModelFile, runner: Runner) -> bool:
        """A runner that has worked has touched buffers that were only reserved when it became ready. Whether its
        account has grown."""
        if runner.ready is None:
            return False
        measured = self._measure(model, runner, runner.ready)
        if measured is None:
            return False
        with self._lock:
            held = measured - runner.closed_slots * runner.slot_bytes
            if held <= self._ledger.bytes_of(model.id):
                return False
            try:
                self._ledger.grow(model.id, held)
                has_grown = True
            except ModelDoesNotFit as error:  # it runs already; the next load of it will reserve enough
                log.warning("budget_exceeded", model=model.id, reason=str(error))
                has_grown = False
        self._costs.record_growth(model, measured_bytes=measured - self._costs.parked_bytes(model))
        return has_grown

    def open_slot(self, runner: Runner, *, kept_bytes: int) -> bool:
        """Account for one more slot of this runner and count it as open. False when none is closed, or that would take
        more than what is free, or some of the bytes that others wait for."""
        with self._lock:
            if not runner.closed_slots or self._ledger.free_bytes < runner.slot_bytes + kept_bytes:
                return False
            try:
                self._ledger.grow(runner.model, self._ledger.bytes_of(runner.model) + runner.slot_bytes)
            except ModelDoesNotFit:  # somebody else was quicker
                return False
            runner.open_one()
            return True

    def _measure(self, model: ModelFile, runner: Runner, ready: Ready) -> int | None:
        mapping = ModelMapping(
            paths=(model.path, *((model.draft.path,) if model.draft else ())),
            weight_bytes=ready.weight_bytes,
            copied_bytes=ready.copied_weight_bytes,
            untouched=ready.untouched,
        )
        return self._device.runner_bytes(runner.pid, mapping)
