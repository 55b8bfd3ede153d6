"""The warm pool with real runner processes: the fake engine always, llama.cpp on a tiny model."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tasks.fleet import RunnerReport, RunnerState, WorkerPlacement
from tasks.jobs import JobId, Priority, WorkerId
from tasks.ports import Cancelled, Failed, Finished, Parked
from tests.support.scripted_runner import MIB, Changes, MemorySink, Running, make_attempt
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_model import write_tiny_model
from tools.random_gguf.shapes import RandomModel
from tools.random_gguf.writing import write_random_gguf
from workers.clock import Clock
from workers.devices import CPU_OVERHEAD_BYTES, CpuDevice
from workers.engine.fake_behaviour import FakeBehaviour
from workers.estimate import need_of_measured
from workers.keeper import PoolLimits
from workers.ledger import Ledger
from workers.measurements import Measurements
from workers.model_folder import FolderScanner
from workers.needs import formula_need
from workers.runner_launch import EngineKind
from workers.runner_starter import RunnerStarter
from workers.spare_runner import SpareRunner
from workers.warm_pool import WarmPool

LOAD_PATIENCE_S = 60.0  # two busy cores

pytestmark = pytest.mark.timeout(120)


class Worker:
    """A pool over a folder; without one, over the same tiny model under three names."""

    def __init__(
        self,
        folder: Path,
        *,
        kind: EngineKind,
        budget_bytes: int,
        fake: FakeBehaviour,
        models: Path | None = None,
        limits: PoolLimits | None = None,
    ) -> None:
        if models is None:
            models = folder / "models"
            models.mkdir()
            source = write_tiny_model(folder / "tiny.gguf")
            for name in "abc":
                shutil.copy(source, models / f"{name}.gguf")
        self.sink = MemorySink()
        self.changes = Changes()
        self.ledger = Ledger(budget_bytes)
        self.measurements = Measurements(folder / "measurements.json")
        self.pids: set[int] = set()
        self.pool = WarmPool(
            worker_id=WorkerId("w1"),
            folder=FolderScanner(models, default_slots=4).scan(),
            ledger=self.ledger,
            device=CpuDevice(),
            measurements=self.measurements,
            start_runner=RunnerStarter(
                source=SpareRunner(kind, keeps=False),
                sink=self.sink,
                clock=Clock(),
                log_dir=folder / "logs",
                kind=kind,
                threads=1,
                turns_path=None,
                gpu_layers=0,
                main_gpu=0,
                use_extra_bufts=True,
                stall_s=20,
                load_stall_s=60,
                fake=fake,
            ),
            clock=Clock(),
            limits=limits or PoolLimits(drain_s=0.0),
            on_change=self.changes,
        )
        self._epoch = 0

    def place(self, *hold: str, evict: tuple[str, ...] = ()) -> None:
        self._epoch += 1
        self.pool.apply(WorkerPlacement(hold=hold, evict=evict), self._epoch)

    def report(self, model: str) -> RunnerReport | None:
        return next((each for each in self.pool.report() if each.model == model), None)

    def await_ready(self, model: str, *, other_than: int = 0) -> RunnerReport:
        found: list[RunnerReport] = []

        def is_ready() -> bool:
            report = self.report(model)
            if report is not None and report.state is RunnerState.READY and report.pid != other_than:
                found.append(report)
            return bool(found)

        self.changes.wait_until(is_ready, LOAD_PATIENCE_S)
        self.pids.add(found[0].pid)
        return found[0]

    def await_gone(self, model: str) -> None:
        self.changes.wait_until(lambda: self.report(model) is None)

    def run(self, job_id: str, model: str, **fields: object) -> Running:
        slot = self.pool.take_slot(model, Priority.DEFAULT)
        assert slot is not None
        return Running(slot, make_attempt(job_id, model=model, **fields), self.sink)  # type: ignore[arg-type]


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(tmp_path: Path) -> Iterator[MakeWorker]:
    workers: list[Worker] = []

    def make(
        *,
        kind: EngineKind = "fake",
        budget_bytes: int = 2000 * MIB,
        fake: FakeBehaviour | None = None,
        models: Path | None = None,
        limits: PoolLimits | None = None,
    ) -> Worker:
        fake = fake or FakeBehaviour()
        worker = Worker(tmp_path, kind=kind, budget_bytes=budget_bytes, fake=fake, models=models, limits=limits)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.pool.close()
        assert worker.pool.report() == ()
        assert worker.pool.used_bytes == 0
        assert not any(psutil.pid_exists(pid) for pid in worker.pids)


def test_two_models_are_loaded_and_one_is_evicted(make_worker: MakeWorker) -> None:
    worker = make_worker()
    worker.place("a", "b")
    gone, stays = worker.await_ready("a"), worker.await_ready("b")
    worker.place("b", evict=("a",))
    worker.await_gone("a")
    assert not psutil.pid_exists(gone.pid)
    assert psutil.pid_exists(stays.pid)
    assert worker.pool.used_bytes == stays.bytes


def test_real_bytes_are_measured_and_remembered(make_worker: MakeWorker) -> None:
    worker = make_worker()
    worker.place("a")
    report = worker.await_ready("a")
    assert 5 * MIB < report.bytes < 500 * MIB
    offers = {offer.id: offer for offer in worker.pool.offers()}
    assert offers["a"].bytes == need_of_measured(report.bytes).total_bytes
    assert offers["a"].load_ms > 0


def test_generation_goes_through_a_real_process(make_worker: MakeWorker) -> None:
    worker = make_worker()
    worker.place("a")
    worker.await_ready("a")
    running = [worker.run(f"job_{number}", "a", max_tokens=12) for number in range(4)]
    for number, each in enumerate(running):
        outcome = each.outcome()
        assert isinstance(outcome, Finished)
        assert worker.sink.text_of(f"job_{number}") == outcome.text != ""
        assert outcome.usage.completion_tokens > 0


def test_killed_runner_gives_a_retryable_outcome_and_its_bytes_back(make_worker: MakeWorker) -> None:
    worker = make_worker(fake=FakeBehaviour(step_ms=50, mean_tokens=1000))
    worker.place("a")
    report = worker.await_ready("a")
    running = worker.run("job_1", "a", max_tokens=400)
    assert worker.sink.has_called.wait(20)
    os.kill(report.pid, signal.SIGKILL)
    outcome = running.outcome()
    assert isinstance(outcome, Failed)
    assert outcome.is_retryable
    assert outcome.error.code == "runner_crashed"
    fresh = worker.await_ready("a", other_than=report.pid)
    assert worker.pool.used_bytes == fresh.bytes


def test_budget_too_small_is_refused_with_the_arithmetic(make_worker: MakeWorker) -> None:
    worker = make_worker(budget_bytes=CPU_OVERHEAD_BYTES // 2)
    worker.place("a")
    failure = next(offer.failure for offer in worker.pool.offers() if offer.id == "a")
    assert failure is not None
    assert "needs" in failure
    assert "weights" in failure
    assert "the budget is 13.0 MiB" in failure
    assert worker.pool.report() == ()


def test_four_requests_at_once_start_one_process(make_worker: MakeWorker) -> None:
    worker = make_worker(fake=FakeBehaviour(load_s=0.2))
    threads = [threading.Thread(target=worker.pool.apply, args=(WorkerPlacement(hold=("a",)), 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = worker.await_ready("a")
    titles = {child.pid: " ".join(child.cmdline()) for child in psutil.Process().children()}
    assert [pid for pid, title in titles.items() if "keepwarm runner" in title] == [report.pid]


def test_cancel_and_park_end_real_sequences(make_worker: MakeWorker) -> None:
    worker = make_worker(fake=FakeBehaviour(step_ms=20, mean_tokens=1000))
    worker.place("a")
    worker.await_ready("a")
    cancelled, parked = worker.run("job_1", "a", max_tokens=400), worker.run("job_2", "a", max_tokens=400)
    assert worker.sink.has_called.wait(20)
    assert worker.pool.cancel(JobId("job_1"))
    assert isinstance(cancelled.outcome(), Cancelled)
    worker.place(evict=("a",))
    assert parked.outcome() == Parked()
    worker.await_gone("a")


def test_parked_job_goes_on_at_the_next_token(make_worker: MakeWorker) -> None:
    worker = make_worker(fake=FakeBehaviour(step_ms=10))
    worker.place("a", "b")
    worker.await_ready("a")
    worker.await_ready("b")
    undisturbed = worker.run("job_0", "b", max_tokens=40).outcome()
    assert isinstance(undisturbed, Finished)
    worker.sink.has_called.clear()
    first = worker.run("job_1", "a", max_tokens=40)
    assert worker.sink.has_called.wait(20)
    worker.place("b", evict=("a",))
    assert first.outcome() == Parked()
    chunks = [chunk for chunk in worker.sink.chunks if chunk.job_id == "job_1"]
    resumed = worker.run(
        "job_1",
        "b",
        number=2,
        max_tokens=40,
        last_seq=len(chunks),
        emitted_text=worker.sink.text_of("job_1"),
        forced_ids=worker.sink.ids_of("job_1"),
    ).outcome()
    assert isinstance(resumed, Finished)
    assert resumed.text == undisturbed.text == worker.sink.text_of("job_1")


def test_process_that_hangs_is_killed_at_close(make_worker: MakeWorker) -> None:
    worker = make_worker(limits=PoolLimits(drain_s=0, park_s=0.1, stop_s=0.5))
    worker.place("a")
    report = worker.await_ready("a")
    os.kill(report.pid, signal.SIGSTOP)
    worker.pool.close()
    assert not psutil.pid_exists(report.pid)


def test_llama_cpp_loads_two_models_and_generates(make_worker: MakeWorker) -> None:
    worker = make_worker(kind="llama_cpp")
    worker.place("a", "b")
    worker.await_ready("a")
    worker.await_ready("b")
    outcomes = [worker.run(f"job_{model}", model, max_tokens=8).outcome() for model in "ab"]
    texts = {outcome.text for outcome in outcomes if isinstance(outcome, Finished)}
    assert len(texts) == 1, outcomes  # the same weights and seed under two names
    worker.place("b", evict=("a",))
    worker.await_gone("a")
    assert {report.model for report in worker.pool.report()} == {"b"}


def test_jobs_survive_repeated_kills_without_a_lost_or_doubled_token(make_worker: MakeWorker) -> None:
    worker = make_worker(fake=FakeBehaviour(step_ms=4))
    worker.place("a", "b")
    worker.await_ready("a")
    worker.await_ready("b")
    jobs = [f"job_{number}" for number in range(4)]
    undisturbed = {job: worker.run(job, "b", max_tokens=60, prompt=job).outcome() for job in jobs}
    worker.sink.chunks.clear()
    pending = set(jobs)
    number = 0
    while pending:
        number += 1
        report = worker.await_ready("a")
        running = {
            job: worker.run(
                job,
                "a",
                number=number,
                max_tokens=60,
                prompt=job,
                last_seq=len([chunk for chunk in worker.sink.chunks if chunk.job_id == job]),
                emitted_text=worker.sink.text_of(job),
                forced_ids=worker.sink.ids_of(job),
            )
            for job in sorted(pending)
        }
        before = len(worker.sink.calls)
        if number <= 3:
            assert worker.sink.await_calls(before + 3 * number)
            os.kill(report.pid, signal.SIGKILL)
        for job, each in running.items():
            outcome = each.outcome()
            if isinstance(outcome, Finished):
                pending.remove(job)
                expected = undisturbed[job]
                assert isinstance(expected, Finished)
                assert outcome.text == worker.sink.text_of(job) == expected.text
                assert outcome.usage.completion_tokens == expected.usage.completion_tokens
            else:
                assert isinstance(outcome, Failed)
                assert outcome.is_retryable
        if number <= 3:
            worker.await_ready("a", other_than=report.pid)
    for job in jobs:
        chunks = [chunk for chunk in worker.sink.chunks if chunk.job_id == job]
        assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1))


def test_base_and_two_adapters_are_hot_where_two_copies_of_the_weights_would_not_fit(
    make_worker: MakeWorker, tmp_path: Path
) -> None:
    models = tmp_path / "family"
    models.mkdir()
    shape = RandomModel(width=512, num_layers=2, num_kv_heads=8, hidden_width=1408)
    write_random_gguf(models / "base.gguf", "base", shape)
    for seed, name in enumerate(("formal", "rhyming")):
        write_tiny_lora(models / f"{name}.gguf", seed=seed, layers=2, width=512, feed_forward=1408)
    (models / "models.yaml").write_text(
        "models: {base: {context_length: 128, slots: 3}, formal: {base: base}, rhyming: {base: base}}"
    )
    (base,) = FolderScanner(models, default_slots=3).scan().models
    need_bytes = formula_need(base, CpuDevice()).total_bytes
    budget_bytes = need_bytes + shape.num_bytes * 3 // 4
    worker = make_worker(kind="llama_cpp", budget_bytes=budget_bytes, models=models)
    worker.place("base")
    worker.await_ready("base")
    names = ("base", "formal", "rhyming")
    assert set(worker.pool.free_slots()) == set(names)
    running = {name: worker.run(f"job_{name}", name, prompt="7 8 9", max_tokens=30) for name in names}
    texts = set()
    for each in running.values():
        outcome = each.outcome()
        assert isinstance(outcome, Finished)
        assert outcome.usage.completion_tokens > 0
        texts.add(outcome.text)
    assert len(texts) == len(names)
    worker.pool.reconcile()
    assert [report.model for report in worker.pool.report()] == ["base"]
    # Measured as one process that holds the weights once; two processes would not even fit without any buffers.
    assert shape.num_bytes + base.adapter_bytes < worker.pool.used_bytes < budget_bytes
    assert budget_bytes < 2 * (shape.num_bytes + CPU_OVERHEAD_BYTES)
    assert {offer.id: offer.failure for offer in worker.pool.offers()} == dict.fromkeys(names)


def test_model_that_would_not_fit_gets_fewer_slots_and_says_so(make_worker: MakeWorker, tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.mkdir()
    write_tiny_model(probe / "a.gguf")
    (model,) = FolderScanner(probe, default_slots=2).scan().models
    worker = make_worker(budget_bytes=formula_need(model, CpuDevice()).total_bytes)
    worker.place("a")
    assert worker.await_ready("a").slots == 2
    report = worker.report("a")
    assert report is not None
    assert (report.reduced or "").startswith("2 of 4 slots, to fit into ")
    offer = next(each for each in worker.pool.offers() if each.id == "a")
    assert (offer.slots, offer.reduced, offer.failure) == (2, report.reduced, None)
    assert offer.estimate_error is not None
