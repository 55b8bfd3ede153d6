"""One simulated device: all its sequences advance by one token per round, and a round gets longer with each of them.

A virtual clock counts rounds, so that an arrival or an end changes one number instead of every sequence's plan.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from benchmarks.simulation.parameters import Hardware, Model
from benchmarks.simulation.workload import Request


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way. Parked, it keeps its tokens and prefills them again."""

    number: int
    request: Request
    generated: int = 0
    first_token_ms: float | None = None
    finished_ms: float | None = None
    started_ms: float = 0.0  # of the newest attempt

    @property
    def order(self) -> tuple[int, float, int]:
        return (self.request.priority, self.request.arrival_ms, self.number)


@dataclass(slots=True, eq=False)
class Sequence:
    job: Job
    model: Model
    first_at: float  # rounds
    ends_at: float
    is_gone: bool = False


class Device:
    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.rounds = 0.0
        self.at_ms = 0.0
        self.version = 0  # of its next event
        self._active: dict[str, int] = {}  # model → sequences
        self._weights_ms: dict[str, float] = {}
        self._count = 0
        self._milestones: list[tuple[float, int, Sequence]] = []
        self._number = 0

    @property
    def count(self) -> int:
        return self._count

    def round_ms(self) -> float:
        return sum(self._weights_ms.values()) + self.hardware.sequence_ms * self._count

    def advance(self, now_ms: float) -> None:
        if self._count and now_ms > self.at_ms:
            self.rounds += (now_ms - self.at_ms) / self.round_ms()
        self.at_ms = max(self.at_ms, now_ms)

    def add(self, job: Job, model: Model, now_ms: float) -> Sequence:
        self.advance(now_ms)
        prefill = (job.request.context + job.generated) / self.hardware.prefill_tokens_per_step
        first_at = self.rounds + max(1.0, prefill)
        sequence = Sequence(job, model, first_at, first_at + max(0, job.request.tokens - job.generated - 1))
        self._push(first_at, sequence)
        self._active[model.id] = self._active.get(model.id, 0) + 1
        measured_ms, by_bytes_ms = model.step_ms, model.bytes / self.hardware.decode_bytes_per_s * 1000
        self._weights_ms[model.id] = by_bytes_ms if measured_ms is None else measured_ms
        self._count += 1
        self.version += 1
        return sequence

    def remove(self, sequence: Sequence, now_ms: float) -> None:
        """Done or parked; a parked one keeps the tokens that it has."""
        self.advance(now_ms)
        sequence.is_gone = True
        left = max(0.0, sequence.ends_at - self.rounds)
        if self.rounds >= sequence.first_at:
            sequence.job.generated = max(sequence.job.generated, sequence.job.request.tokens - max(1, round(left)))
        model = sequence.model.id
        self._active[model] -= 1
        if not self._active[model]:
            del self._active[model], self._weights_ms[model]
        self._count -= 1
        self.version += 1

    def next_event_ms(self) -> float | None:
        while self._milestones and self._milestones[0][2].is_gone:
            heapq.heappop(self._milestones)
        if not self._milestones:
            return None
        return self.at_ms + max(0.0, self._milestones[0][0] - self.rounds) * self.round_ms()

    def due(self, now_ms: float) -> list[Sequence]:
        """Sequences that end now; first tokens are noted on the way."""
        self.advance(now_ms)
        ended = []
        while self._milestones and self._milestones[0][0] <= self.rounds + 1e-6:
            at, _, sequence = heapq.heappop(self._milestones)
            if sequence.is_gone:
                continue
            if at >= sequence.ends_at:
                ended.append(sequence)
            if at == sequence.first_at:
                if sequence.job.first_token_ms is None:
                    sequence.job.first_token_ms = now_ms
                if at < sequence.ends_at:
                    self._push(sequence.ends_at, sequence)
        self.version += 1
        return ended

    def _push(self, at: float, sequence: Sequence) -> None:
        self._number += 1
        heapq.heappush(self._milestones, (at, self._number, sequence))
