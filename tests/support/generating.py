"""Run generations on an engine in this process, as the runner's main thread would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from tasks.generation import GenerationRequest, SamplingParams, TokenLogprob
from workers.engine.base import Engine
from workers.engine.step_loop import StepLoop
from workers.messages import Done, Encoded, Generate, Output, TokenOut

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Heard:
    """All that one generation said."""

    outputs: list[TokenOut] = field(default_factory=list)
    end: Done | None = None

    @property
    def done(self) -> Done:
        assert self.end is not None, "the generation has not ended"
        return self.end

    def take(self, output: Output) -> None:
        assert self.end is None, "output after the end"
        if isinstance(output, Done):
            self.end = output
        else:
            assert not isinstance(output, Encoded), "a generation has no vectors"
            self.outputs.append(output)

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token for output in self.outputs for token in output.ids)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(each for output in self.outputs for each in output.logprobs)


def request(prompt: str, **options) -> GenerationRequest:
    """Greedy unless the test says otherwise."""
    return GenerationRequest(model="m", prompt=prompt, **{"sampling": GREEDY, **options})


class Steps(Protocol):
    """An engine, or the step loop inside it."""

    def step(self) -> tuple[Output, ...]: ...


def listen(engine: Steps, into: dict[int, Heard]) -> int:
    """One step; returns how many outputs it had."""
    outputs = engine.step()
    for output in outputs:
        heard = into.setdefault(output.key, Heard())
        heard.take(output)
    return len(outputs)


def run_loop(loop: StepLoop, heard: dict[int, Heard] | None = None) -> dict[int, Heard]:
    """Step until everybody has ended."""
    heard = {} if heard is None else heard
    for _ in range(5000):
        if not loop.has_work:
            return heard
        listen(loop, heard)
    raise AssertionError("somebody starves")


def run(
    engine: Engine, messages: Iterable[Generate], *, on_step: Callable[[int], None] | None = None
) -> dict[int, Heard]:
    """Start all messages together and step until all are done; `on_step` sees the number of each step before it."""
    heard: dict[int, Heard] = {}
    for message in messages:
        engine.add(engine.prepare(message))
    steps = 0
    while engine.has_work:
        steps += 1
        if on_step is not None:
            on_step(steps)
        listen(engine, heard)
        assert steps < 10_000
    return heard


def run_one(engine: Engine, what: GenerationRequest, **message) -> Heard:
    return run(engine, [Generate(key=1, request=what, **message)])[1]
