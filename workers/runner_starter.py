"""Start real runner processes with a worker's settings: the effect behind `keeper.StartRunner`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import KeepwarmError
from tasks.log_files import bound_log
from workers.clock import Clock
from workers.engine.base import DraftConfig, EngineAdapter, EngineConfig
from workers.engine.fake_behaviour import FakeBehaviour
from workers.engine.kv_types import STEADY
from workers.model_files import ModelFile
from workers.runner import Runner, RunnerLimits
from workers.runner_launch import EngineKind, RunnerConfig, RunnerSource
from workers.runner_link import ProcessLink
from workers.token_sink import TokenSink

SLOWEST_LOAD_BYTES_PER_S = 20_000_000  # a disk that is slower than this counts as stalled
SEND_TIMEOUT_S = 30.0
FIRST_ANSWER_S = 0.5  # for so long the cores are left to the first answer of what was just loaded
WEIGHT_BYTES_PER_THREAD = 16 * 1024**2  # below this much work a further thread does not pay


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStarter:
    """Everything that all runners of a worker have in common."""

    source: RunnerSource
    sink: TokenSink
    clock: Clock
    log_dir: Path  # one file per model, appended
    kind: EngineKind
    threads: int
    turns_path: Path | None
    gpu_layers: int
    main_gpu: int
    use_extra_bufts: bool
    stall_s: float
    load_stall_s: float
    parked_memory: int | None = None  # bytes per model; None: by the size of its KV cache
    frame_ms: int = 0  # as in `workers.settings`
    split_mode: str = "none"
    tensor_split: tuple[float, ...] = ()
    fake: FakeBehaviour = FakeBehaviour()  # noqa: RUF009 - frozen

    def __call__(self, model: ModelFile, *, need_bytes: int, on_change: Callable[[], None]) -> Runner:
        """Raises OSError when the process can't be started."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        config = self.config_for(model)
        bound_log(config.log_path)  # for workers that no `up` looks after
        process, connection = self.source.start(config)
        runner = Runner(
            model=model.id,
            link=ProcessLink(process, connection, send_timeout_s=SEND_TIMEOUT_S),
            slots=model.slots,
            sink=self.sink,
            limits=RunnerLimits(
                stall_s=self.stall_s, load_stall_s=self.load_stall_s + need_bytes / SLOWEST_LOAD_BYTES_PER_S
            ),
            clock=self.clock,
            on_change=on_change,
            fingerprint=model.fingerprint,
        )
        runner.start()
        threading.Thread(
            target=self._replenish_after, args=(runner,), name=f"replenish-{model.id}", daemon=True
        ).start()
        return runner

    def _replenish_after(self, runner: Runner) -> None:
        with contextlib.suppress(KeepwarmError):  # the pool hears of it too
            runner.wait_loaded()
            runner.wait_answering(FIRST_ANSWER_S)
        self.source.replenish()

    def _threads(self, weight_bytes: int) -> int:
        """Threads of a runner meet at a barrier after every operation, where they spin. A small model has too little
        to do in between: a second thread gains it nothing, and costs it a time slice per barrier on a busy machine."""
        return min(self.threads, 1 + weight_bytes // WEIGHT_BYTES_PER_THREAD)

    def _kv_type(self, model: ModelFile) -> str:
        """On a CPU a text must not depend on who shares its batches, nor on whether it was resumed."""
        if model.kv_type != "auto":
            return model.kv_type
        return STEADY if self.gpu_layers == 0 else "f16"

    def config_for(self, model: ModelFile) -> RunnerConfig:
        return RunnerConfig(
            model=model.id,
            engine=self.engine_for(model),
            log_path=self.log_dir / f"runner-{model.id}.log",
            frame_s=self.frame_ms / 1000,
            kind=self.kind,
            fake=self.fake,
        )

    def _draft(self, model: ModelFile) -> DraftConfig | None:
        if model.draft is None:
            return None
        return DraftConfig(
            model_path=model.draft.path,
            context_length=model.draft.context_length_for(model.context_length),
            threads=self._threads(model.draft.shape.weight_bytes),
        )

    def engine_for(self, model: ModelFile) -> EngineConfig:
        return EngineConfig(
            model_path=model.path,
            context_length=model.context_length,
            slots=model.slots,
            threads=self._threads(model.shape.weight_bytes),
            turns_path=self.turns_path,
            kv_type=self._kv_type(model),
            gpu_layers=self.gpu_layers,
            main_gpu=self.main_gpu,
            split_mode=self.split_mode,
            tensor_split=self.tensor_split,
            has_steady_weights=model.has_steady_weights,
            use_extra_bufts=self.use_extra_bufts,
            draft=self._draft(model),
            parked_bytes=model.parked_bytes(self.parked_memory),
            model_kind=model.kind,
            pooling=model.pooling,
            adapters=tuple(EngineAdapter(each.id, each.path, each.scale) for each in model.adapters),
        )
