"""What a model will need here, before it was ever loaded: the formula at once, a dry run as soon as it is done.

A dry run lays the model out in a throwaway process (`workers.engine.dry_run`) and knows every architecture that
llama.cpp knows; the formula knows the common ones, and answers while the dry run waits for its turn.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable

import msgspec
import structlog

from tasks.fleet import ModelKind
from workers.devices import Device
from workers.engine.base import EngineConfig
from workers.engine.dry_run import DryRun
from workers.estimate import EstimatedNeed, ModelShape, estimate_draft_bytes, estimate_encoding_need, estimate_need
from workers.model_files import ModelFile

log = structlog.get_logger(__name__)

DRY_RUN_LIMIT_S = 60.0

ConfigOf = Callable[[ModelFile], EngineConfig]


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


def dry_run(config: EngineConfig) -> DryRun | None:
    """None when it fails: the load itself will say what is wrong with the file."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.engine.dry_run"],
            input=msgspec.json.encode(config, enc_hook=str),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=DRY_RUN_LIMIT_S,
            check=True,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        return msgspec.json.decode(done.stdout, type=DryRun)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        log.info("dry_run_failed", model=config.model_path.name, error=str(error))
        return None


class Needs:
    """Thread-safe. One dry run at a time, each setting of a model once. What is gone from the folder is forgotten."""

    def __init__(
        self,
        device: Device,
        config_of: ConfigOf | None = None,
        *,
        run: Callable[[EngineConfig], DryRun | None] = dry_run,
    ) -> None:
        """Without `config_of` there is only the formula."""
        self._device = device
        self._config_of = config_of
        self._on_change: Callable[[], None] = lambda: None
        self._run = run
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, EngineConfig], DryRun | None] = {}  # None: asked, or failed
        self._questions: queue.SimpleQueue[tuple[str, EngineConfig]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call this after each dry run, in a thread of its own."""
        self._on_change = on_change

    def keep_only(self, models: Iterable[ModelFile]) -> None:
        """Forget all files but these, also what is still asked about others."""
        current = {model.identity for model in models}
        with self._lock:
            for question in [each for each in self._answers if each[0] not in current]:
                del self._answers[question]

    def need(self, model: ModelFile, parked_bytes: int = 0) -> EstimatedNeed:
        answer = self._ask(model)
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

    def _ask(self, model: ModelFile) -> DryRun | None:
        if self._config_of is None:
            return None
        question = (model.identity, self._config_of(model))
        with self._lock:
            if question in self._answers:
                return self._answers[question]
            self._answers[question] = None
            self._questions.put(question)
            if self._thread is None:
                self._thread = threading.Thread(target=self._answer, name="dry-runs", daemon=True)
                self._thread.start()
        return None

    def _answer(self) -> None:
        while True:
            question = self._questions.get()
            try:
                self._answer_one(question)
            except Exception:  # the next question is about another model
                log.exception("dry_run_broke", model=question[1].model_path.name)

    def _answer_one(self, question: tuple[str, EngineConfig]) -> None:
        with self._lock:
            is_wanted = question in self._answers
        answer = self._run(question[1]) if is_wanted else None
        if answer is None:
            return
        with self._lock:
            if question not in self._answers:  # forgotten meanwhile
                return
            self._answers[question] = answer
        self._on_change()
