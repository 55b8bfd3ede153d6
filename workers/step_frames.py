"""When a runner speaks: at once, unless its steps are so fast that several of them can share a frame.

A frame costs the worker, the store, the front and the client's socket the same whether it carries one token of a
sequence or four. So steps that follow one another within an interval go out together. A first token and an end never
wait, and no output waits for a step that may be long.

Nobody reads batch work as it is made, and every frame takes a core from the threads that compute: tokens of batch work
alone wait PATIENT_S, and only its ends, which free slots, go out at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from workers.messages import Done, Output, Step

PATIENT_S = 0.5


class StepFrames:
    """Holds the output of fast steps until their common frame is due. `clock` counts seconds.

    Use as a context manager around the steps: also when one fails, what those before it made goes out."""

    def __init__(
        self, send: Callable[[Step], None], *, interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._interval_s = interval_s
        self._clock = clock
        self._number = 0
        self._held: list[Output] = []
        self._begun: set[int] = set()  # keys of sequences that have said something and go on
        self._patient: set[int] = set()  # keys of batch work
        self._sent_at = -interval_s

    def __enter__(self) -> StepFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def let_wait(self, key: int) -> None:
        """This is batch work, until it is done."""
        self._patient.add(key)

    def add(self, outputs: Sequence[Output]) -> None:
        """The output of one more step. An empty one counts too: the number of a frame is the proof of life."""
        self._number += 1
        self._held += outputs
        if self._is_urgent(outputs) or self._clock() - self._sent_at >= self._bound_s():
            self._send_held()

    def flush(self) -> None:
        """Before a step that may be long, or none: what is held can't wait for it."""
        if self._held:
            self._send_held()

    def _bound_s(self) -> float:
        is_awaited = not self._held or any(output.key not in self._patient for output in self._held)
        return self._interval_s if is_awaited else max(self._interval_s, PATIENT_S)

    def _is_urgent(self, outputs: Sequence[Output]) -> bool:
        is_urgent = False
        for output in outputs:
            if isinstance(output, Done):
                self._begun.discard(output.key)
                self._patient.discard(output.key)
                is_urgent = True
            elif output.key not in self._begun and output.key not in self._patient:
                self._begun.add(output.key)
                is_urgent = True
        return is_urgent

    def _send_held(self) -> None:
        held, self._held = tuple(self._held), []
        self._send(Step(self._number, held))
        self._sent_at = self._clock()
