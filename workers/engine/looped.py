"""The half of an engine that is the same for all models: hand everything to the step loop."""

from __future__ import annotations

from tasks.errors import WrongModelKind
from tasks.fleet import ModelKind
from workers.engine.sequence import Sequence
from workers.engine.step_loop import StepLoop
from workers.messages import Done, Encode, Generate, TokenOut


def only_generate(message: Generate | Encode) -> Generate:
    """The front has looked already; but a model's file may change while its job waits. Raises WrongModelKind."""
    if isinstance(message, Encode):
        raise WrongModelKind(message.request.model, ModelKind.GENERATE)
    return message


class LoopedEngine:
    """Base of engines whose `load` or constructor sets `_loop`; see `workers.engine.base.Engine` for the contract."""

    _loop: StepLoop

    def add(self, sequence: Sequence) -> None:
        self._loop.add(sequence)

    def cancel(self, key: int) -> None:
        self._loop.cancel(key)

    def interrupt(self, key: int) -> None:
        self._loop.interrupt(key)

    def hurry(self) -> None:
        self._loop.hurry()

    def open_slots(self, count: int) -> None:
        self._loop.open_slots(count)

    def rest(self) -> None:
        self._loop.rest()

    @property
    def has_work(self) -> bool:
        return self._loop.has_work

    def step(self) -> tuple[TokenOut | Done, ...]:
        return self._loop.step()
