"""A warm pool whose runners are scripts: every process start, load and end is the test's decision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tasks.controller.decisions import Decision
from tasks.fleet import RunnerReport, RunnerState, WorkerPlacement
from tasks.jobs import WorkerId
from tests.support.scripted_runner import MIB, PATIENCE_S, Changes, ManualClock, MemorySink, ScriptedLink
from workers.devices import ModelMapping
from workers.estimate import ModelShape
from workers.keeper import PoolLimits
from workers.ledger import Ledger
from workers.measurements import Measurements
from workers.messages import Shutdown
from workers.model_files import AdapterFile, ModelFile, ModelFolder, UnusableFile
from workers.runner import Runner, RunnerLimits
from workers.warm_pool import WarmPool


def make_adapter(adapter_id: str, *, identity: str = "1") -> AdapterFile:
    """An adapter of a MiB."""
    return AdapterFile(
        id=adapter_id,
        base="base",
        path=Path(f"/models/{adapter_id}.gguf"),
        file_bytes=MIB,
        tensor_bytes=MIB,
        identity=identity,
        scale=1.0,
        aliases=(),
        fallback=None,
    )


def with_adapters(model: ModelFile, *adapters: AdapterFile) -> ModelFile:
    """As the scan of a folder makes it."""
    weight_bytes = model.shape.weight_bytes + sum(each.tensor_bytes for each in adapters)
    return replace(
        model,
        adapters=adapters,
        identity=";".join([model.identity, *(f"{each.id}={each.identity}" for each in adapters)]),
        shape=replace(model.shape, weight_bytes=weight_bytes),
    )


def make_model(model_id: str, *, mib: int, pinned: bool = False, slots: int = 2, identity: str = "1") -> ModelFile:
    """A model that needs exactly `mib` MiB by the formula, so that tests can count."""
    return ModelFile(
        id=model_id,
        path=Path(f"/models/{model_id}.gguf"),
        file_bytes=mib * MIB,
        identity=identity,
        shape=ModelShape(
            weight_bytes=mib * MIB,
            vocabulary_size=0,
            embedding_length=0,
            feed_forward_length=0,
            heads=0,
            kv_heads=(),
            key_length=0,
            value_length=0,
        ),
        trained_context_length=0,
        description="test",
        aliases=(),
        context_length=0,
        slots=slots,
        kv_type="f16",
        is_pinned=pinned,
        ttl_s=None,
        fallback=None,
        devices=(),
        replicas=0,
        max_replicas=1,
    )


@dataclass
class FakeDevice:
    """Agrees with everything, until the test says otherwise."""

    name: str = "fake"
    runner_overhead_bytes: int = 0
    spare_bytes: int = 0
    token_table_bytes: int = 0
    free_marks: list[int] = field(default_factory=list)  # answers to come; none left: it keeps no marks
    measured: dict[int, int] = field(default_factory=dict)  # pid → bytes
    dirty_pids: set[int] = field(default_factory=set)
    on_question: Callable[[], None] = lambda: None  # whenever it is asked about a pid, ahead of the answer

    def total_bytes(self) -> int:
        return 1000 * MIB

    def available_bytes(self) -> int:
        return 1000 * MIB

    def runner_bytes(self, pid: int, mapping: ModelMapping) -> int | None:
        return self.measured.get(pid)

    def free_mark(self) -> int | None:
        return self.free_marks.pop(0) if self.free_marks else None

    def has_released(self, pid: int) -> bool:
        self.on_question()
        return pid not in self.dirty_pids


class ScriptedStarter:
    """Starts a ScriptedLink per model; `links[model]` holds all of them in order."""

    def __init__(self, sink: MemorySink, clock: ManualClock) -> None:
        self._sink = sink
        self._clock = clock
        self._condition = threading.Condition()
        self.links: dict[str, list[ScriptedLink]] = {}
        self.error: OSError | None = None
        self._next_pid = 5001

    def __call__(self, model: ModelFile, *, need_bytes: int, on_change: Callable[[], None]) -> Runner:
        if self.error:
            raise self.error
        with self._condition:
            link = ScriptedLink(self._next_pid)
            self._next_pid += 1
            runner = Runner(
                model=model.id,
                link=link,
                slots=model.slots,
                sink=self._sink,
                limits=RunnerLimits(stall_s=30, load_stall_s=60),
                clock=self._clock.clock(),
                on_change=on_change,
            )
            runner.start()
            self.links.setdefault(model.id, []).append(link)
            self._condition.notify_all()
        return runner

    def count(self, model: str) -> int:
        return len(self.links.get(model, ()))

    def await_start(self, model: str, count: int = 1) -> ScriptedLink:
        with self._condition:
            assert self._condition.wait_for(lambda: self.count(model) >= count, PATIENCE_S), f"{model} did not start"
            return self.links[model][count - 1]


class PoolBench:
    """A pool with a budget in MiB over scripted runners."""

    def __init__(
        self,
        folder: Path,
        *models: ModelFile,
        budget_mib: int = 1000,
        unusable: tuple[UnusableFile, ...] = (),
        drain_s: float = 0.0,
        parked_mib: int = 0,
        disks: Mapping[str, int] | None = None,
    ) -> None:
        """`disks`: of the models whose files are not cached."""
        self.disks = dict(disks or {})
        self.sink = MemorySink()
        self.clock = ManualClock()
        self.changes = Changes()
        self.loads: dict[str, tuple[int, int]] = {}  # model → ms of its last load, and of the whole swap
        self.evictions: list[Decision] = []  # that the pool decided on its own
        self.device = FakeDevice()
        self.starter = ScriptedStarter(self.sink, self.clock)
        self.ledger = Ledger(budget_mib * MIB)
        self.measurements = Measurements(folder / "measurements.json")
        self.models = {model.id: model for model in models}
        self.pool = WarmPool(
            worker_id=WorkerId("w1"),
            folder=ModelFolder(models=models, unusable=unusable),
            ledger=self.ledger,
            device=self.device,
            measurements=self.measurements,
            start_runner=self.starter,
            clock=self.clock.clock(),
            limits=PoolLimits(drain_s=drain_s, park_s=5, stop_s=5),
            parked_memory=parked_mib * MIB,
            disk_of=lambda path: self.disks.get(path.stem),
            on_change=self.changes,
            on_load=self._note_load,
            on_evict=self._note_eviction,
        )
        self._epoch = 0

    def _note_load(self, model: str, load_ms: int, swap_ms: int) -> None:
        self.loads[model] = (load_ms, swap_ms)
        self.changes()

    def _note_eviction(self, decision: Decision) -> None:
        self.evictions.append(decision)
        self.changes()

    def await_eviction(self) -> Decision:
        """The only one so far."""
        self.changes.wait_until(lambda: bool(self.evictions))
        (decision,) = self.evictions
        return decision

    def place(self, *hold: str, evict: tuple[str, ...] = ()) -> None:
        self._epoch += 1
        self.pool.apply(WorkerPlacement(hold=hold, evict=evict), self._epoch)

    def finish_load(self, model: str, *, start: int = 1, broken_adapters: dict[str, str] | None = None) -> ScriptedLink:
        """Let the model's load succeed with exactly the bytes that the formula gives."""
        link = self.starter.await_start(model, start)
        link.load(weight_bytes=self.models[model].shape.weight_bytes, broken_adapters=broken_adapters)
        self.changes.wait_until(lambda: self.state(model) is RunnerState.READY)
        return link

    def warm(self, *models: str) -> None:
        self.place(*models)
        for model in models:
            self.finish_load(model)

    def report(self, model: str) -> RunnerReport | None:
        return next((each for each in self.pool.report() if each.model == model), None)

    def state(self, model: str) -> RunnerState | None:
        report = self.report(model)
        return report.state if report else None

    def await_gone(self, model: str) -> None:
        self.changes.wait_until(lambda: self.report(model) is None)

    def failure(self, model: str) -> str | None:
        return next(offer.failure for offer in self.pool.offers() if offer.id == model)

    def await_failure(self, model: str) -> str:
        self.changes.wait_until(lambda: self.failure(model))
        failure = self.failure(model)
        assert failure is not None
        return failure

    def was_asked_to_exit(self, model: str) -> bool:
        return any(isinstance(message, Shutdown) for link in self.starter.links[model] for message in link.sent)
