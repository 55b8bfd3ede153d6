"""What a model will need here, before it was ever loaded: the formula at once, a dry run as soon as it is done.

A dry run lays the model out in a throwaway process (`workers.dry_runs`) and knows every architecture that llama.cpp
knows; the formula knows the common ones, and answers while the dry run waits for its turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from tasks.fleet import ModelKind
from workers.devices import Device
from workers.dry_runs import DryRunStopped, KnownAnswers, answer_key, dry_run
from workers.engine.base import EngineConfig
from workers.engine.dry_run import DryRun
from workers.estimate import EstimatedNeed, ModelShape, estimate_draft_bytes, estimate_encoding_need, estimate_need
from workers.idle_time import LOOK_S, QUIET_S, QuietWait
from workers.model_files import ModelFile

log = structlog.get_logger(__name__)

ConfigOf = Callable[[ModelFile], EngineConfig]
Question = tuple[str, EngineConfig]  # the identity of the files, and how they would be loaded


class RunDry(Protocol):
    """As `workers.dry_runs.dry_run`."""

    def __call__(self, config: EngineConfig, *, gives_way: bool, is_hurried: Callable[[], bool]) -> DryRun | None: ...


def overhead_bytes(device: Device, shape: ModelShape) -> int:
    """What the runner's process takes beside weights and buffers."""
    return device.runner_overhead_bytes + device.token_table_bytes * shape.vocabulary_size


def _draft_table_bytes(device: Device, model: ModelFile) -> int:
    """What the process takes for the vocabulary of a draft model."""
    return device.token_table_bytes * model.draft.shape.vocabulary_size if model.draft else 0


def _formula_draft_bytes(model: ModelFile, device: Device) -> int:
    if model.draft is None:
        return 0
    return _draft_table_bytes(device, model) + estimate_draft_bytes(
        model.draft.shape,
        context_length=model.draft.context_length_for(model.context_length),
        slots=model.slots,
        kv_type=model.kv_type,
    )


def formula_need(model: ModelFile, device: Device, parked_bytes: int = 0) -> EstimatedNeed:
    runner_bytes = overhead_bytes(device, model.shape)
    if model.kind is not ModelKind.GENERATE:
        return estimate_encoding_need(
            model.shape, input_length=model.context_length, kv_type=model.kv_type, runner_bytes=runner_bytes
        )
    return estimate_need(
        model.shape,
        context_length=model.context_length,
        slots=model.slots,
        kv_type=model.kv_type,
        runner_bytes=runner_bytes,
        draft_bytes=_formula_draft_bytes(model, device),
        parked_bytes=parked_bytes,
    )


class Needs:
    """Thread-safe. One dry run at a time, each setting of a model once. What is gone from the folder is forgotten.

    A dry run is work that nobody waits for, but for one of a model that can't be loaded by what the formula says: it
    begins when nothing else has run for a while, and gives way to all that comes. If somebody comes to wait for one
    meanwhile, it is stopped, and begun again later."""

    def __init__(
        self,
        device: Device,
        config_of: ConfigOf | None = None,
        *,
        known: KnownAnswers | None = None,
        run: RunDry = dry_run,
        quiet_s: float = QUIET_S,
    ) -> None:
        """Without `config_of` there is only the formula, without `known` every process asks anew."""
        self._device = device
        self._config_of = config_of
        self._known = known or KnownAnswers(None)
        self._on_change: Callable[[], None] = lambda: None
        self._is_busy: Callable[[], bool] = lambda: False
        self._run = run
        self._quiet_s = quiet_s
        self._asked = threading.Condition()
        self._answers: dict[Question, DryRun | None] = {}  # None: asked, or failed
        self._open: dict[Question, bool] = {}  # not answered yet, who asked first; whether somebody waits for it
        self._thread: threading.Thread | None = None

    def listen(self, on_change: Callable[[], None], is_busy: Callable[[], bool] = lambda: False) -> None:
        """Call `on_change` after each dry run, in a thread of its own; begin none while `is_busy`, if it can wait."""
        self._on_change, self._is_busy = on_change, is_busy

    def keep_only(self, models: Iterable[ModelFile]) -> None:
        """Forget all files but these, also what is still asked about others."""
        current = {model.identity for model in models}
        with self._asked:
            for question in [each for each in self._answers if each[0] not in current]:
                del self._answers[question]
                self._open.pop(question, None)

    def hurry(self, model: ModelFile) -> None:
        """The formula's answer stands in the way of a load: ask about this model now, whatever runs, also in place of a
        dry run that gives way."""
        if self._config_of is None:
            return
        self._answer_for(model)
        question = (model.identity, self._config_of(model))
        with self._asked:
            if self._open.get(question) is False:
                self._open[question] = True
                self._asked.notify()

    def need(self, model: ModelFile, parked_bytes: int = 0, *, asks: bool = True) -> EstimatedNeed:
        """Without `asks`, as in a comparison of many settings, no dry run is made for this."""
        answer = self._answer_for(model, asks=asks)
        if answer is None:
            return formula_need(model, self._device, parked_bytes)
        return EstimatedNeed(
            weight_bytes=answer.weight_bytes + model.adapter_bytes,  # which are not dry-run
            kv_bytes=answer.kv_bytes,
            compute_bytes=answer.compute_bytes,
            output_bytes=answer.output_bytes,
            runner_bytes=overhead_bytes(self._device, model.shape),
            draft_bytes=answer.draft_bytes + _draft_table_bytes(self._device, model),
            parked_bytes=parked_bytes,
        )

    def _answer_for(self, model: ModelFile, *, asks: bool = True) -> DryRun | None:
        if self._config_of is None:
            return None
        question = (model.identity, self._config_of(model))
        with self._asked:
            if question in self._answers:
                return self._answers[question]
            answer = self._known.get(answer_key(*question, self._device.name))
            if answer is None and not asks:
                return None
            self._answers[question] = answer
            if answer is not None:
                return answer
            self._open[question] = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._answer_forever, name="dry-runs", daemon=True)
                self._thread.start()
            self._asked.notify()
        return None

    def _answer_forever(self) -> None:
        quiet = QuietWait(lambda: self._is_busy(), quiet_s=self._quiet_s)
        while True:
            question, is_urgent = self._next(quiet)
            try:
                self._answer(question, is_urgent)
            except Exception:  # the next question is about another model
                log.exception("dry_run_broke", model=question[1].model_path.name)

    def _next(self, quiet: QuietWait) -> tuple[Question, bool]:
        """Blocks until a question is urgent, or there is one and time for it."""
        while True:
            with self._asked:
                self._asked.wait_for(lambda: self._open)
            is_time = quiet.is_over()  # without the lock: it asks the pool
            with self._asked:
                question = next((each for each, is_urgent in self._open.items() if is_urgent), None)
                if question is None and is_time:
                    question = next(iter(self._open), None)
                if question is not None:
                    return question, self._open[question]
                self._asked.wait_for(lambda: any(self._open.values()), LOOK_S)

    def _is_hurried(self) -> bool:
        with self._asked:
            return any(self._open.values())

    def _close(self, question: Question, *, is_stopped: bool) -> None:
        """One that was stopped goes behind the others, unless its file is gone meanwhile."""
        with self._asked:
            is_urgent = self._open.pop(question, None)
            if is_stopped and is_urgent is not None:
                self._open[question] = is_urgent

    def _answer(self, question: Question, is_urgent: bool) -> None:
        is_stopped = False
        try:
            answer = self._run(question[1], gives_way=not is_urgent, is_hurried=self._is_hurried)
        except DryRunStopped:
            is_stopped = True
            return
        finally:
            self._close(question, is_stopped=is_stopped)
        if answer is None:
            return
        with self._asked:
            if question not in self._answers:  # forgotten meanwhile
                return
            self._answers[question] = answer
        self._known.put(answer_key(*question, self._device.name), answer)
        self._on_change()
