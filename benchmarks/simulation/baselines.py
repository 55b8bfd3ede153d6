"""Other systems' rules on the same simulated fleet: who is loaded where, and who leaves for it.

All of them but `load on request` have queues per model and serve whatever is resident ("affinity"), which is what makes
the comparison honest: most of the gain over a plain queue comes from that alone.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.simulation.cluster import DRAINING, READY, STARTING, Cluster, Runner, Worker
from benchmarks.simulation.parameters import Model

Site = tuple[Worker, list[Runner]]  # where a model fits, and who leaves for it


def _load_instead(cluster: Cluster, site: Site, model: str) -> None:
    worker, victims = site
    for victim in victims:
        cluster.evict(worker, victim.model.id)
    cluster.load(worker, model)


class OnDemand:
    """Load the absent model with the oldest waiting job where there is room, else where idle models can leave.

    Subclasses say in which order idle models leave, and which may."""

    name = "LRU + affinity"
    is_ticked = False

    def begin(self, cluster: Cluster) -> None: ...

    def decide(self, cluster: Cluster) -> None:
        for model in cluster.waiting_models():
            site = self._site(cluster, cluster.models[model])
            if site is not None:
                worker, victims = site
                for victim in victims:
                    cluster.evict(worker, victim.model.id)
                self.on_load(worker, cluster.models[model], cluster)
                cluster.load(worker, model)

    def rank(self, runner: Runner, worker: Worker, cluster: Cluster) -> float:
        """The least leaves first."""
        return runner.last_used_ms

    def may_go(self, runner: Runner, worker: Worker, cluster: Cluster) -> bool:
        return runner.state == READY and not runner.running and not cluster.depth(runner.model.id)

    def may_take(self, worker: Worker, model: Model, cluster: Cluster) -> bool:
        return True

    def fits(self, worker: Worker, model: Model, leaving: int, count: int) -> bool:
        """With so many bytes and runners gone."""
        return worker.claimed_bytes - leaving + model.bytes <= worker.budget_bytes

    def on_load(self, worker: Worker, model: Model, cluster: Cluster) -> None: ...

    def _site(self, cluster: Cluster, model: Model) -> Site | None:
        workers = [
            worker
            for worker in cluster.workers
            if model.id not in worker.runners and self.may_take(worker, model, cluster)
        ]
        with_room = [worker for worker in workers if self.fits(worker, model, 0, 0)]
        if with_room:
            return min(with_room, key=lambda each: (each.claimed_bytes, each.name)), []
        options = []
        for worker in workers:
            idle = [each for each in worker.runners.values() if self.may_go(each, worker, cluster)]
            idle.sort(key=lambda each: (self.rank(each, worker, cluster), each.model.id))
            leaving = 0
            chosen: list[Runner] = []
            for runner in idle:
                if self.fits(worker, model, leaving, len(chosen)):
                    break
                leaving += runner.model.bytes
                chosen.append(runner)
            if chosen and self.fits(worker, model, leaving, len(chosen)):
                newest = max(self.rank(each, worker, cluster) for each in chosen)
                options.append((newest, worker.name, worker, chosen))
        if not options:
            return None
        _, _, worker, chosen = min(options, key=lambda option: option[:2])
        return worker, chosen


class GreedyDual(OnDemand):
    """FaasCache's keep-alive: priority = clock + uses · cost / bytes; the clock rises to that of each victim."""

    name = "greedy-dual"

    def begin(self, cluster: Cluster) -> None:
        self.clocks = {worker.name: 0.0 for worker in cluster.workers}
        self.stamps: dict[tuple[str, str], tuple[int, float]] = {}

    def rank(self, runner: Runner, worker: Worker, cluster: Cluster) -> float:
        key = (worker.name, runner.model.id)
        uses, stamp = self.stamps.get(key, (-1, 0.0))
        if uses != runner.uses:
            cost = cluster.setting.load_ms(runner.model, is_cached=worker.is_cached(runner.model.id))
            stamp = self.clocks[worker.name] + runner.uses * cost / (runner.model.bytes / 1e9)
            self.stamps[key] = (runner.uses, stamp)
        return stamp

    def on_load(self, worker: Worker, model: Model, cluster: Cluster) -> None:
        leaving = [runner for runner in worker.runners.values() if runner.state == DRAINING]
        stamps = [self.stamps.get((worker.name, each.model.id), (0, 0.0))[1] for each in leaving]
        self.clocks[worker.name] = max([self.clocks[worker.name], *stamps])


class ModelMesh(OnDemand):
    """LRU; no load while the least recently used model was used within ten times the load time; a second copy of a
    model that is busy and was used before."""

    name = "ModelMesh"
    is_ticked = True
    CHURN = 10.0

    def may_go(self, runner: Runner, worker: Worker, cluster: Cluster) -> bool:
        age_ms = cluster.now_ms - runner.last_used_ms
        load_ms = cluster.setting.load_ms(runner.model, is_cached=True)
        return super().may_go(runner, worker, cluster) and age_ms >= self.CHURN * load_ms

    def decide(self, cluster: Cluster) -> None:
        super().decide(cluster)
        for model in sorted(cluster.queues):
            holders = [worker for worker in cluster.workers if model in worker.runners]
            is_reused = any(worker.runners[model].uses > worker.runners[model].model.slots for worker in holders)
            if not is_reused or any(worker.runners[model].state != READY for worker in holders):
                continue
            site = self._site(cluster, cluster.models[model])
            if site is not None:
                _load_instead(cluster, site, model)


class Ollama(OnDemand):
    """One pending load at a time: the oldest absent request holds up all others until its room is there. With nobody
    idle the first runner is told to go as soon as it is done. Idle models leave after five minutes."""

    name = "Ollama's rule"
    is_ticked = True
    KEEP_ALIVE_MS = 300_000

    def decide(self, cluster: Cluster) -> None:
        for worker in cluster.workers:
            for runner in list(worker.runners.values()):
                if self.may_go(runner, worker, cluster) and cluster.now_ms - runner.last_used_ms > self.KEEP_ALIVE_MS:
                    cluster.evict(worker, runner.model.id)
        for model in cluster.waiting_models():
            site = self._site(cluster, cluster.models[model])
            if site is None:
                self._expire_one(cluster)
                return
            _load_instead(cluster, site, model)
            if site[1]:
                return

    def rank(self, runner: Runner, worker: Worker, cluster: Cluster) -> float:
        return 0.0  # all have the same keep-alive; the id decides

    def _expire_one(self, cluster: Cluster) -> None:
        if any(runner.state != READY for worker in cluster.workers for runner in worker.runners.values()):
            return
        found = [
            (runner.model.id, worker.name, worker) for worker in cluster.workers for runner in worker.runners.values()
        ]
        if found:
            model, _, worker = min(found, key=lambda each: each[:2])
            cluster.evict(worker, model)


class LlamaSwap(OnDemand):
    """Groups with `swap`: every model belongs to one worker, and one model at a time runs there; the next one in line
    has it stop as soon as its requests are done."""

    name = "llama-swap's rule"

    def begin(self, cluster: Cluster) -> None:
        self.home = {
            model: cluster.workers[number % len(cluster.workers)] for number, model in enumerate(cluster.models)
        }

    def decide(self, cluster: Cluster) -> None:
        for model in cluster.waiting_models():
            worker = self.home[model]
            others = [runner for runner in worker.runners.values() if runner.model.id != model]
            if any(runner.state != READY for runner in worker.runners.values()):
                continue
            if any(runner.running for runner in others):
                continue
            for runner in others:
                cluster.evict(worker, runner.model.id)
            cluster.load(worker, model)


class LruByCount(OnDemand):
    """llama-server's router: at most so many models, whatever their size; as many as fit if all were of the largest."""

    name = "LRU by count"

    def begin(self, cluster: Cluster) -> None:
        largest = max(model.bytes for model in cluster.setting.models)
        self.count = max(1, cluster.setting.hardware.budget_bytes // largest)

    def fits(self, worker: Worker, model: Model, leaving: int, count: int) -> bool:
        staying = sum(runner.state != DRAINING for runner in worker.runners.values()) - count
        return staying + 1 <= self.count and super().fits(worker, model, leaving, count)


class Static(OnDemand):
    """Placement in the way of AlpaServe: by the true rates, the hottest models stay for good, with replicas by rate ×
    time; what is left shares one swap place per worker by LRU."""

    name = "static placement"

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates = rates

    def begin(self, cluster: Cluster) -> None:
        self.fixed: set[tuple[str, str]] = set()
        largest = max(model.bytes for model in cluster.setting.models)
        room = {worker.name: worker.budget_bytes - largest for worker in cluster.workers}
        load = {worker.name: 0.0 for worker in cluster.workers}
        copies: dict[str, int] = {}
        while True:
            options = [
                (self.rates.get(model.id, 0.0) / (copies.get(model.id, 0) + 1), model.id)
                for model in cluster.setting.models
                if any(self._is_open(worker, model, room) for worker in cluster.workers)
            ]
            if not options or max(options)[0] <= 0:
                break
            share, name = max(options)
            model = cluster.models[name]
            open_workers = [worker for worker in cluster.workers if self._is_open(worker, model, room)]
            worker = min(open_workers, key=lambda each: (load[each.name], each.name))
            self.fixed.add((worker.name, name))
            room[worker.name] -= model.bytes
            load[worker.name] += share
            copies[name] = copies.get(name, 0) + 1
            cluster.load(worker, name)

    def _is_open(self, worker: Worker, model: Model, room: dict[str, int]) -> bool:
        return (worker.name, model.id) not in self.fixed and model.bytes <= room[worker.name]

    def may_go(self, runner: Runner, worker: Worker, cluster: Cluster) -> bool:
        return (worker.name, runner.model.id) not in self.fixed and super().may_go(runner, worker, cluster)


class LoadOnRequest(OnDemand):
    """A plain task queue: the oldest request of all goes next, to the first worker that can take it; a model that is
    not there is loaded, and until then nobody behind it gets a slot. Idle models leave by LRU."""

    name = "load on request, FIFO"

    def decide(self, cluster: Cluster) -> None:
        heads = sorted((queue[0][1].request.arrival_ms, model) for model, queue in cluster.queues.items() if queue)
        for _, model in heads[:1]:
            if cluster.is_held(model):
                continue
            site = self._site(cluster, cluster.models[model])
            if site is not None:
                _load_instead(cluster, site, model)

    def may_go(self, runner: Runner, worker: Worker, cluster: Cluster) -> bool:
        return runner.state == READY and not runner.running  # whoever waits behind the head does not count


class Unlimited(OnDemand):
    """No memory limit: every model is on every worker from the start. A bound, not a policy."""

    name = "no memory limit"

    def begin(self, cluster: Cluster) -> None:
        for worker in cluster.workers:
            worker.budget_bytes = 2**62
            for model in cluster.setting.models:
                worker.runners[model.id] = Runner(model, READY, 0.0, 0.0, 0.0)

    def decide(self, cluster: Cluster) -> None: ...


class Clairvoyant(OnDemand):
    """Knows all arrivals: the idle model whose next request is furthest away leaves (Belady), weighed by what its
    load costs per byte. With `look_ahead_ms` it also loads what comes within that time, wherever that costs nobody
    who comes sooner. Replicas of what is busy fill what is left."""

    is_ticked = True

    def __init__(self, *, look_ahead_ms: float = 0.0) -> None:
        self.look_ahead_ms = look_ahead_ms
        self.name = "clairvoyant, prefetches" if look_ahead_ms else "clairvoyant eviction"

    def begin(self, cluster: Cluster) -> None:
        self.coming: dict[str, list[float]] = {}
        for job in reversed(cluster.jobs):
            self.coming.setdefault(job.request.model, []).append(job.request.arrival_ms)

    def next_ms(self, model: str, now_ms: float) -> float:
        times = self.coming.get(model, [])
        while times and times[-1] < now_ms:
            times.pop()
        return times[-1] if times else 1e15

    def rank(self, runner: Runner, worker: Worker, cluster: Cluster) -> float:
        return -self.next_ms(runner.model.id, cluster.now_ms)

    def decide(self, cluster: Cluster) -> None:
        super().decide(cluster)
        self._replicate(cluster)
        if self.look_ahead_ms:
            self._prefetch(cluster)

    def _prefetch(self, cluster: Cluster) -> None:
        soon = sorted((self.next_ms(model, cluster.now_ms), model) for model in cluster.models)
        for at_ms, model in soon:
            if at_ms > cluster.now_ms + self.look_ahead_ms:
                break
            if cluster.is_held(model):
                continue
            site = self._site(cluster, cluster.models[model])
            if site is not None and all(self.next_ms(each.model.id, cluster.now_ms) > at_ms for each in site[1]):
                _load_instead(cluster, site, model)

    def _replicate(self, cluster: Cluster) -> None:
        for model in sorted(cluster.queues):
            holders = [worker for worker in cluster.workers if model in worker.runners]
            if not holders or any(worker.runners[model].state == STARTING for worker in holders):
                continue
            service_ms, _ = cluster.service.get(model, (0.0, 0))
            spec = cluster.models[model]
            line_ms = cluster.depth(model) * service_ms / (spec.slots * len(holders))
            site = self._site(cluster, spec)
            if site is None or line_ms < cluster.setting.load_ms(spec, is_cached=site[0].is_cached(model)):
                continue
            if all(self.next_ms(each.model.id, cluster.now_ms) > cluster.now_ms + line_ms for each in site[1]):
                _load_instead(cluster, site, model)


def line_up(rates: dict[str, float]) -> dict[str, Callable[[], OnDemand]]:
    """Makers of all baselines and bounds, by name."""
    makers: list[Callable[[], OnDemand]] = [
        LoadOnRequest, OnDemand, Ollama, LlamaSwap, LruByCount, ModelMesh, lambda: Static(rates), GreedyDual,
        Clairvoyant, lambda: Clairvoyant(look_ahead_ms=20_000), Unlimited,
    ]  # fmt: skip
    return {make().name: make for make in makers}
