"""Encode many inputs at once: the inputs of all jobs share each batch, in turn. Knows nothing of llama.cpp."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tasks.errors import AdapterFailed
from tasks.jobs import JobError
from workers.engine.base import EngineFailed
from workers.messages import Done, Encoded, Output

Rows = npt.NDArray[np.float32]
STEP_TOKENS = 512  # a batch of short inputs ends here, so that a cancel and the proof of life come soon


class EncodingBackend(Protocol):
    """A model that turns a batch of inputs into rows; one thread owns it."""

    def encode(self, inputs: Items[Items[int]], adapter: str = "") -> Rows:
        """One row per input, in order, all computed with one adapter; "" is the model itself. Raises EngineFailed."""
        ...


@dataclass(slots=True, eq=False)
class Encoding:
    """One job's inputs, tokenised; the first `done` of them have their rows."""

    key: int
    inputs: tuple[tuple[int, ...], ...]
    adapter: str = ""
    done: int = 0
    dimensions: int | None = None
    is_scored: bool = False  # a score per input, and no vector
    prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = sum(map(len, self.inputs))

    @property
    def num_left(self) -> int:
        return len(self.inputs) - self.done


class EncodeLoop:
    """Jobs and steps on top of one backend; the engine of `workers.engine.base` but for load and prepare."""

    def __init__(self, backend: EncodingBackend, *, max_tokens: int, max_inputs: int) -> None:
        """`max_tokens`, `max_inputs`: what one batch can take; no input is longer than `max_tokens`."""
        self._backend = backend
        self._step_tokens = min(max_tokens, STEP_TOKENS)
        self._max_inputs = max_inputs
        self._jobs: deque[Encoding] = deque()  # whose turn it is comes first
        self._outbox: list[Output] = []

    @property
    def has_work(self) -> bool:
        return bool(self._jobs or self._outbox)

    def add(self, job: Encoding) -> None:
        if job.num_left > 0:
            self._jobs.append(job)
        else:
            self._outbox.append(_done(job))  # an earlier attempt had published everything but the end

    def cancel(self, key: int) -> None:
        for job in self._jobs:
            if job.key == key:
                self._jobs.remove(job)
                self._outbox.append(_done(job, is_cancelled=True))
                return

    def step(self) -> tuple[Output, ...]:
        outputs, self._outbox = self._outbox, []
        alike = [job for job in self._jobs if job.adapter == self._jobs[0].adapter]
        chosen = share_batch(alike, max_tokens=self._step_tokens, max_inputs=self._max_inputs)
        if not chosen:
            return tuple(outputs)
        batch = [tokens for job, count in chosen for tokens in job.inputs[job.done : job.done + count]]
        rows = self._backend.encode(batch, chosen[0][0].adapter)
        if not chosen[0][0].adapter and not np.isfinite(rows).all():
            raise EngineFailed("The model produced NaN or infinity: its file is damaged.")
        at, first = 0, chosen[0][0]
        for job, count in chosen:
            own, at = rows[at : at + count], at + count
            if not np.isfinite(own).all():
                self._jobs.remove(job)
                outputs.append(_done(job, error=AdapterFailed(job.adapter)))
                continue
            outputs.append(Encoded(job.key, tuple(finish_row(job, row) for row in own)))
            job.done += count
            if job.num_left == 0:
                self._jobs.remove(job)
                outputs.append(_done(job))
        if self._jobs and self._jobs[0] is first:  # served best; had it ended, the next one is first by now
            self._jobs.rotate(-1)
        return tuple(outputs)


def share_batch(jobs: Items[Encoding], *, max_tokens: int, max_inputs: int) -> list[tuple[Encoding, int]]:
    """How many of its next inputs each job gets into the batch: one after the other in turn while there is room.

    The first input always gets in, however long it is."""
    counts = [0] * len(jobs)
    tokens, inputs = 0, 0
    waiting = list(range(len(jobs)))
    while waiting and inputs < max_inputs:
        still: list[int] = []
        for index in waiting:
            job = jobs[index]
            if counts[index] >= job.num_left or inputs == max_inputs:
                continue
            size = len(job.inputs[job.done + counts[index]])
            if inputs and tokens + size > max_tokens:
                continue
            counts[index] += 1
            tokens += size
            inputs += 1
            still.append(index)
        waiting = still
    return [(job, count) for job, count in zip(jobs, counts, strict=True) if count]


def finish_row(job: Encoding, row: Rows) -> bytes:
    """Scores as they are; vectors cut to the wished dimensions and scaled to length 1, as OpenAI's are."""
    if not job.is_scored:
        row = row[: job.dimensions]
        length = float(np.linalg.norm(row))
        row = row / length if length > 0 else row
    return row.astype("<f4").tobytes()


def _done(job: Encoding, *, is_cancelled: bool = False, error: AdapterFailed | None = None) -> Done:
    return Done(
        key=job.key,
        finish_reason=None if is_cancelled or error else "stop",
        prompt_tokens=job.prompt_tokens,
        completion_tokens=0,
        error=JobError(code=error.code, message=str(error)) if error else None,
    )
