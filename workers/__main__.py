"""`python -m workers`: one worker, owner of one device. `--check` only validates the settings; exit code 2 if wrong.

It prints the devices that workers of this machine should have, each on a line of its own: for `keepwarm up`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import structlog

from tasks import failpoints
from tasks.celery_app import app as celery_app
from tasks.controller.decisions import Decision
from tasks.environment import warn_of_unknown_settings
from tasks.errors import InvalidSetting, StoreUnavailable
from tasks.fleet import ModelOffer, RunnerReport, RunnerState, WorkerReport
from tasks.jobs import WorkerId
from tasks.lifeline import exit_when_parent_dies
from tasks.logs import configure_logs
from tasks.ports import register_model_host
from tasks.process_name import process_name
from tasks.settings import StoreSettings, load_settings
from tasks.store.backlog_store import BacklogStore
from tasks.store.connection import connect
from tasks.store.fleet_store import FleetStore
from tasks.store.hint_listener import HintListener
from tasks.store.lease_store import LeaseStore
from tasks.store.policy_store import PolicyStore
from tasks.store.token_writer import TokenWriter
from tasks.threads import hand_over_soon
from workers.celery_worker import run_celery_worker
from workers.clock import Clock, StoreTime
from workers.devices import CpuDevice, Device, default_budget, find_device
from workers.dry_runs import KnownAnswers
from workers.folder_watch import FolderWatch
from workers.hints import Hints
from workers.keeper import PoolLimits
from workers.lease_keeper import LeaseKeeper
from workers.ledger import Ledger
from workers.load_notices import LoadNotices
from workers.measurements import Measurements
from workers.model_folder import FolderScanner
from workers.needs import Needs
from workers.nursery import Nursery
from workers.reconciler import Reconciler
from workers.runner_launch import RunnerSource
from workers.runner_starter import RunnerStarter
from workers.settings import WorkerSettings
from workers.slot_gate import GatedHost, gate
from workers.spare_runner import SpareRunner
from workers.subscriptions import CeleryQueues
from workers.tiers import Tiers, disk_of
from workers.token_sink import FailingSink
from workers.warm_pool import WarmPool
from workers.worker_devices import worker_devices

SPARE_SHARE = 0.05  # of the budget, at most, for a runner that waits for a model
PREDECESSOR_SILENT_MS = 1_500  # more than a heartbeat's second

log = structlog.get_logger(__name__)


def main() -> None:
    try:
        settings, store_settings = load_settings(WorkerSettings), load_settings(StoreSettings)
        scanner = FolderScanner(settings.models_dir, default_slots=settings.slots)
        scanner.scan()
        device = find_device(
            settings.device,
            gpu_layers=settings.gpu_layers,
            main_gpu=settings.main_gpu,
            shares=None if settings.split_mode == "none" else settings.tensor_split,
        )
    except InvalidSetting as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if "--check" in sys.argv[1:]:
        print(*worker_devices(settings, os.environ), sep="\n")
        return
    configure_logs()
    warn_of_unknown_settings()
    hand_over_soon()
    exit_when_parent_dies()
    serve(settings, store_settings, scanner, device)


def serve(settings: WorkerSettings, store_settings: StoreSettings, scanner: FolderScanner, device: Device) -> None:
    """Put the parts together and run until a signal ends it; no runner outlives this call."""
    worker_id = WorkerId(process_name())
    client = connect(store_settings)
    fleet, policy, writer = FleetStore(client), PolicyStore(client), TokenWriter(client)
    store_time = StoreTime(fleet.now_ms)
    clock = Clock(now_ms=store_time.now_ms)
    leases = LeaseStore(client, store_settings)
    _prepare_record(fleet, leases, store_time)
    budget = settings.memory_budget or default_budget(device)
    keeps_spare = device.spare_bytes <= budget * SPARE_SHARE
    budget -= device.spare_bytes if keeps_spare else 0
    is_cpu = device.name == CpuDevice.name
    source: RunnerSource = SpareRunner(settings.engine, keeps=keeps_spare)
    if keeps_spare and can_fork(settings, is_cpu=is_cpu):
        source, device = Nursery(settings.engine), CpuDevice(forks_runners=True)
    source.replenish()
    tiers = Tiers(lambda: pool.models, CpuDevice().idle_bytes, lambda: pool.is_loading, maps_weights=is_cpu)

    def count_load(model: str, load_ms: int, swap_ms: int) -> None:
        tiers.loaded(model, load_ms)
        with suppress(StoreUnavailable):  # a figure less
            fleet.count_load(model, load_ms, swap_ms)

    def tell_eviction(decision: Decision) -> None:
        with suppress(StoreUnavailable):  # the worker's log has it
            policy.note(decision)

    starter = _starter(settings, source, store_settings.home / "logs", writer, clock)
    folder = scanner.scan()
    pool = WarmPool(
        worker_id=worker_id,
        folder=folder,
        ledger=Ledger(budget),
        device=device,
        measurements=Measurements(store_settings.home / "measurements.json"),
        start_runner=starter,
        needs=Needs(
            device,
            starter.engine_for if settings.engine == "llama_cpp" else None,
            known=KnownAnswers(store_settings.home / "dry_runs.json"),
        ),
        clock=clock,
        disk_of=disk_of,
        limits=PoolLimits(drain_s=settings.evict_drain_s),
        parked_memory=settings.parked_memory if is_cpu else 0,  # it is no GPU's memory
        on_change=lambda: on_change(),  # defined below; nothing changes before the first placement
        on_load=count_load,
        on_evict=tell_eviction,
    )

    def ring() -> None:
        with suppress(StoreUnavailable):  # the pop ends by itself within a second
            fleet.ring(worker_id)

    queues = CeleryQueues(ring)
    reconciler = Reconciler(
        worker_id=worker_id,
        pool=pool,
        fleet=fleet,
        subscriptions=queues,
        load_notices=LoadNotices(BacklogStore(client), writer),
        make_report=_Identity(
            id=worker_id,
            host=socket.gethostname(),
            device=device.name,
            budget_bytes=budget,
            started_ms=clock.now_ms(),
            tiers=tiers,
            warnings=lambda: watch.warnings,  # defined below; nothing is reported before
        ),
        clock=clock,
        prefetch=tiers.prefetch,
        synchronise=store_time.synchronise,
    )
    keeper = LeaseKeeper(
        leases=leases, host=pool, lease_s=store_settings.lease_s, stall_s=settings.stall_s, clock=clock
    )
    hints = Hints(HintListener(store_settings, worker_id), on_placement=reconciler.poke, on_cancel=pool.cancel)
    watch = FolderWatch(scanner, folder, pool.update_models)
    register_model_host(GatedHost(pool))

    gate.connect(pool.free_slots, pool.urgent_slots, ring, runner_of=pool.runner_of)

    def on_change() -> None:
        gate.look_again()
        reconciler.poke()

    def drain() -> None:
        reconciler.begin_drain()
        pool.drain(settings.drain_s)

    log.info("worker_started", worker=worker_id, device=device.name, budget_bytes=budget)
    for part in (keeper, hints, reconciler, watch, tiers):
        part.start()
    try:
        run_celery_worker(celery_app, worker_id, queues, on_shutdown=drain)
    finally:
        pool.close()
        source.close()
        for part in (tiers, watch, hints, keeper, reconciler):
            part.stop()
        log.info("worker_stopped", worker=worker_id)


def can_fork(settings: WorkerSettings, *, is_cpu: bool) -> bool:
    """Elsewhere a system's library has threads before the fork, or layers go to a GPU whose driver survives none."""
    return sys.platform == "linux" and is_cpu and settings.gpu_layers == 0


def _starter(
    settings: WorkerSettings, source: RunnerSource, log_dir: Path, writer: TokenWriter, clock: Clock
) -> RunnerStarter:
    return RunnerStarter(
        source=source,
        sink=FailingSink(writer) if failpoints.is_armed() else writer,
        clock=clock,
        log_dir=log_dir,
        kind=settings.engine,
        fake=settings.fake,
        threads=settings.threads,
        turns_path=log_dir.parent / f"cores-{socket.gethostname()}",
        gpu_layers=settings.gpu_layers,
        main_gpu=settings.main_gpu,
        split_mode=settings.split_mode,
        tensor_split=settings.tensor_split,
        use_extra_bufts=True,
        stall_s=settings.stall_s,
        load_stall_s=settings.load_stall_s,
        parked_memory=settings.parked_memory,
        frame_ms=settings.frame_ms,
    )


def _prepare_record(fleet: FleetStore, leases: LeaseStore, store_time: StoreTime) -> None:
    """What a new worker does first, if the store is there; otherwise its turns make up for it.

    A worker that was killed on this host holds its models until its heartbeat has aged, and its jobs until their leases
    have: end both now. Its heartbeat must have stopped too: containers may share a host's name, but not its pids.
    One with our own pid was in this container before us, or is in another one: it is off the record until it says
    otherwise, and keeps its jobs for as long as their leases last.
    """
    try:
        store_time.synchronise()
        silent = fleet.silent_workers(PREDECESSOR_SILENT_MS)
        for report in fleet.fleet().workers:
            if report.id not in silent or report.host != socket.gethostname():
                continue
            is_gone = not psutil.pid_exists(report.pid)
            if is_gone or report.pid == os.getpid():
                fleet.forget_worker(report.id)
                num_jobs = leases.disown(report.id) if is_gone else 0
                log.info("predecessor_gone", worker=report.id, num_jobs=num_jobs)
    except StoreUnavailable as error:
        log.warning("store_not_there_yet", error=str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    """What does not change about a worker, and where loads come from: a `workers.reconciler.ReportFactory`."""

    id: WorkerId
    host: str
    device: str
    budget_bytes: int
    started_ms: int
    tiers: Tiers
    warnings: Callable[[], tuple[str, ...]]

    def __call__(
        self,
        *,
        used_bytes: int,
        is_draining: bool,
        placement_epoch: int,
        offers: tuple[ModelOffer, ...],
        runners: tuple[RunnerReport, ...],
    ) -> WorkerReport:
        speed = self.tiers.speed()
        warm = {runner.model for runner in runners if runner.state is RunnerState.READY}
        return WorkerReport(
            id=self.id,
            pid=os.getpid(),
            host=self.host,
            device=self.device,
            budget_bytes=self.budget_bytes,
            used_bytes=used_bytes,
            started_ms=self.started_ms,
            is_draining=is_draining,
            placement_epoch=placement_epoch,
            bandwidths=dict(speed.bandwidths),
            init_ms=speed.init_ms,
            cache_bytes=self.tiers.cache_bytes,
            offers=tuple(
                msgspec.structs.replace(offer, tier=self.tiers.of(offer.id, is_warm=offer.id in warm))
                for offer in offers
            ),
            runners=runners,
            warnings=self.warnings(),
        )


if __name__ == "__main__":
    main()
