"""The production policy in the simulation: it sees what the controller would observe, and its result is applied."""

from __future__ import annotations

from benchmarks.simulation.cluster import DRAINING, READY, STARTING, Cluster, Runner, Worker
from tasks.controller.demand import Demand
from tasks.controller.fleet_view import Memo
from tasks.controller.plan import RULES, plan
from tasks.controller.policy_state import PolicyState
from tasks.controller.rules import Rules
from tasks.fleet import (
    ClassBacklog,
    Fleet,
    ModelOffer,
    Placement,
    QueueReport,
    RunnerReport,
    RunnerState,
    WorkerReport,
)
from tasks.jobs import WorkerId

STATES = {STARTING: RunnerState.STARTING, READY: RunnerState.READY, DRAINING: RunnerState.DRAINING}


class KeepwarmPolicy:
    is_ticked = True

    def __init__(self, rules: Rules = RULES, *, max_replicas: int = 8, name: str = "keepwarm") -> None:
        self.name = name
        self.rules = rules
        self.max_replicas = max_replicas

    def begin(self, cluster: Cluster) -> None:
        self.state, self.placement, self.memo = PolicyState(), Placement(), Memo()
        self.reports: dict[str, tuple[int, WorkerReport]] = {}
        self.looked_ms: int | None = None
        self.prefetches: dict[str, tuple[str, ...]] = {}
        self.offers: dict[tuple[str, frozenset[str]], tuple[ModelOffer, ...]] = {}

    def decide(self, cluster: Cluster) -> None:
        if not cluster.queues and not self._is_due(cluster):
            return
        arrivals, cluster.arrivals = cluster.arrivals, {}
        now_ms = int(cluster.now_ms)
        decided = plan(
            demand=Demand(
                queues=_queues(cluster),
                arrivals=arrivals,
                looked_ms=self.looked_ms,
                service_ms={model: mean for model, (mean, _) in cluster.service.items()},
            ),
            fleet=Fleet(now_ms=now_ms, workers=tuple(self._report(worker, cluster) for worker in cluster.workers)),
            placement=self.placement,
            state=self.state,
            rules=self.rules,
            memo=self.memo,
        )
        self.state, self.placement, self.looked_ms = decided.state, decided.placement, now_ms
        for worker in cluster.workers:
            desired = self.placement.workers[worker.name]
            for model in desired.evict:
                cluster.evict(worker, model)
            for model in desired.hold:
                cluster.load(worker, model)
            if desired.prefetch != self.prefetches.get(worker.name, ()):
                self.prefetches[worker.name] = desired.prefetch
                cluster.read_ahead(worker, desired.prefetch)

    def _is_due(self, cluster: Cluster) -> bool:
        """With nothing waiting a plan changes little: every fifth second is enough to follow the rates."""
        return int(cluster.now_ms) % 5000 < cluster.setting.tick_ms

    def _report(self, worker: Worker, cluster: Cluster) -> WorkerReport:
        known = self.reports.get(worker.name)
        is_loading = any(runner.state == STARTING for runner in worker.runners.values())
        if known is not None and known[0] == worker.version and not is_loading:
            return known[1]
        hardware = cluster.setting.hardware
        report = WorkerReport(
            id=WorkerId(worker.name),
            pid=1,
            host=worker.name,
            device="simulated",
            budget_bytes=worker.budget_bytes,
            used_bytes=worker.used_bytes,
            started_ms=0,
            # Without bandwidths the plan goes by the load times of the offers, which may be measured.
            bandwidths={}
            if any(model.load_ms is not None for model in cluster.setting.models)
            else {"disk": int(hardware.disk_bytes_per_s), "page_cache": int(hardware.cache_bytes_per_s)},
            init_ms=int(hardware.init_ms),
            cache_bytes=hardware.page_cache_bytes,
            offers=self._offers(worker, cluster),
            runners=tuple(_runner(each, cluster.now_ms) for each in worker.runners.values()),
        )
        self.reports[worker.name] = (worker.version, report)
        return report

    def _offers(self, worker: Worker, cluster: Cluster) -> tuple[ModelOffer, ...]:
        """The same tuple while the page cache holds the same models."""
        key = (worker.name, frozenset(worker.cache))
        if key not in self.offers:
            self.offers[key] = tuple(self._offer(worker, model, cluster) for model in cluster.models)
        return self.offers[key]

    def _offer(self, worker: Worker, model_id: str, cluster: Cluster) -> ModelOffer:
        model, is_cached = cluster.models[model_id], worker.is_cached(model_id)
        return ModelOffer(
            id=model_id,
            context_length=4096,
            slots=model.slots,
            bytes=model.bytes,
            file_bytes=model.bytes,
            load_ms=int(cluster.setting.load_ms(model, is_cached=is_cached)),
            tier="page_cache" if is_cached else "disk",
            max_replicas=self.max_replicas,
        )


def _runner(runner: Runner, now_ms: float) -> RunnerReport:
    progress = 1.0
    if runner.state == STARTING:
        started = runner.starts_at_ms
        whole = runner.ready_at_ms - started if started is not None else 0.0
        progress = 0.0 if started is None else min(1.0, max(0.0, (now_ms - started) / max(whole, 1.0)))
    return RunnerReport(
        pid=1,
        model=runner.model.id,
        state=STATES[runner.state],
        bytes=runner.model.bytes,
        slots=runner.model.slots,
        in_flight=len(runner.running),
        since_ms=int(runner.since_ms),
        idle_since_ms=None if runner.running else int(runner.idle_since_ms),
        progress=progress,
    )


def _queues(cluster: Cluster) -> tuple[QueueReport, ...]:
    found = []
    for model in sorted(cluster.queues):
        by_class: dict[int, list[float]] = {}
        for (priority, arrival_ms, _), _ in cluster.queues[model]:
            by_class.setdefault(priority, []).append(arrival_ms)
        classes = tuple(
            ClassBacklog(priority=priority, depth=len(times), oldest_age_ms=int(cluster.now_ms - min(times)))
            for priority, times in sorted(by_class.items())
        )
        oldest = max(each.oldest_age_ms for each in classes)
        depth = sum(each.depth for each in classes)
        found.append(QueueReport(model=model, depth=depth, oldest_age_ms=oldest, classes=classes))
    return tuple(found)
