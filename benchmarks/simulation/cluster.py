"""The simulated fleet: queues per model, runners that load, serve, drain and stop, and a policy that is asked.

Jobs go to ready runners only, within a model by priority and then by arrival, as the real transport does. Everything
else, which model is loaded where and who leaves for it, is the policy's.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from benchmarks.simulation.device import Device, Job, Sequence
from benchmarks.simulation.parameters import Model, Setting
from benchmarks.simulation.waiting_bound import WaitingBound
from benchmarks.simulation.workload import Request
from tasks.controller.plan import RULES

STARTING, READY, DRAINING = "starting", "ready", "draining"


@dataclass(slots=True, eq=False)
class Runner:
    model: Model
    state: str
    since_ms: float
    idle_since_ms: float
    last_used_ms: float
    ready_at_ms: float = 0.0
    starts_at_ms: float | None = None  # None: waits for bytes
    running: list[Sequence] = field(default_factory=list)
    uses: int = 0

    @property
    def free_slots(self) -> int:
        return self.model.slots - len(self.running) if self.state == READY else 0


class Worker:
    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        self.setting = setting
        self.budget_bytes = setting.hardware.budget_bytes
        self.device = Device(setting.hardware)
        self.runners: dict[str, Runner] = {}
        self.channel_free_ms = 0.0
        self.loading_ms = 0.0  # in all
        self.cache: OrderedDict[str, int] = OrderedDict()  # page cache of its host: model → bytes, least recent first
        self.wishes: tuple[str, ...] = ()  # to be read ahead, in this order
        self._read_bytes: dict[str, float] = {}  # of wishes, so far
        self._read_until_ms = 0.0
        self.version = 0  # of what a heartbeat would say

    @property
    def used_bytes(self) -> int:
        """Of runners that have bytes: all but those that still wait for them."""
        return sum(
            runner.model.bytes
            for runner in self.runners.values()
            if runner.state != STARTING or runner.starts_at_ms is not None
        )

    @property
    def claimed_bytes(self) -> int:
        """Once all that leaves is gone."""
        return sum(runner.model.bytes for runner in self.runners.values() if runner.state != DRAINING)

    def is_cached(self, model: str) -> bool:
        return model in self.cache

    def touch_cache(self, model: Model) -> None:
        self.cache[model.id] = model.bytes
        self.cache.move_to_end(model.id)
        total = sum(self.cache.values())
        while total > self.setting.hardware.page_cache_bytes and len(self.cache) > 1:
            total -= self.cache.popitem(last=False)[1]

    def wish(self, models: tuple[str, ...], now_ms: float) -> None:
        """Replaces the wishes before; what was read of them in part is lost with them."""
        self.read_ahead(now_ms)
        self.wishes = models
        self._read_bytes = {model: count for model, count in self._read_bytes.items() if model in models}

    def read_ahead(self, now_ms: float) -> None:
        """Wishes come into the page cache while the disk is idle: one after the other, and never beside a load."""
        since_ms, self._read_until_ms = max(self._read_until_ms, self.channel_free_ms), now_ms
        left = max(0.0, now_ms - since_ms) / 1000 * self.setting.hardware.disk_bytes_per_s
        while left > 0 and self.wishes:
            model = next(each for each in self.setting.models if each.id == self.wishes[0])
            read = self._read_bytes.get(model.id, 0.0)
            missing = 0.0 if self.is_cached(model.id) else model.bytes - read
            if left < missing:
                self._read_bytes[model.id] = read + left
                break
            left -= missing
            self.wishes = self.wishes[1:]
            if missing:
                self._read_bytes.pop(model.id, None)
                self.touch_cache(model)
                self.version += 1


class Policy(Protocol):
    """Asked when a job comes for a model that nobody has ready, when a job or a load ends, when a runner is gone;
    with `is_ticked` also every tick."""

    name: str
    is_ticked: bool

    def begin(self, cluster: Cluster) -> None: ...

    def decide(self, cluster: Cluster) -> None: ...


class Cluster:
    def __init__(self, setting: Setting, requests: list[Request], policy: Policy) -> None:
        self.setting = setting
        self.models = {model.id: model for model in setting.models}
        self.workers = [Worker(f"w{number}", setting) for number in range(setting.num_workers)]
        self.policy = policy
        self.jobs = [Job(number, request) for number, request in enumerate(requests)]
        self.queues: dict[str, list[tuple[tuple[int, float, int], Job]]] = {}
        self.now_ms = 0.0
        self.loads = 0
        self.arrivals: dict[tuple[str, int], int] = {}  # since a policy took them
        self.service: dict[str, tuple[float, int]] = {}  # mean run ms and count, as lua/finish.lua keeps it
        self.absent_since: dict[str, float] = {}
        self.longest_absence_ms = 0.0
        self.bound = WaitingBound(setting, RULES)
        self._events: list[tuple[float, int, Callable[[], bool]]] = []
        self._number = 0
        self._left = len(requests)

    # ---- what a policy may do

    def load(self, worker: Worker, model_id: str) -> None:
        """Begins as soon as its bytes are free; loads of a worker read one after the other."""
        if model_id in worker.runners:
            return
        now = self.now_ms
        worker.runners[model_id] = Runner(self.models[model_id], STARTING, now, now, now)
        worker.version += 1
        self._start_loads(worker)

    def evict(self, worker: Worker, model_id: str) -> None:
        """Drain, park what is left, stop. A load that waits for bytes or is under way is given up at once."""
        runner = worker.runners.get(model_id)
        if runner is None or runner.state == DRAINING:
            return
        worker.version += 1
        hardware = self.setting.hardware
        if runner.state == STARTING and runner.starts_at_ms is None:
            del worker.runners[model_id]
            return
        runner.state, runner.since_ms = DRAINING, self.now_ms
        if runner.running:
            self._at(self.now_ms + hardware.drain_ms, partial(self._park, worker, runner))
        else:
            self._at(self.now_ms + hardware.stop_ms, partial(self._gone, worker, runner))

    def read_ahead(self, worker: Worker, model_ids: tuple[str, ...]) -> None:
        """Have these files in its page cache, as far as the disk is idle."""
        worker.wish(model_ids, self.now_ms)

    def depth(self, model_id: str) -> int:
        return len(self.queues.get(model_id, ()))

    def is_held(self, model_id: str) -> bool:
        return any(model_id in worker.runners and worker.runners[model_id].state != DRAINING for worker in self.workers)

    def is_ready(self, model_id: str) -> bool:
        return any(model_id in worker.runners and worker.runners[model_id].state == READY for worker in self.workers)

    def _note_absence(self, model_id: str) -> None:
        if self.queues.get(model_id) and not self.is_ready(model_id):
            self.absent_since.setdefault(model_id, self.now_ms)

    def waiting_models(self) -> list[str]:
        """Absent models with waiting jobs, the longest waiting head first."""
        heads = [
            (min(entry[1].request.arrival_ms for entry in queue), model)
            for model, queue in self.queues.items()
            if queue and not self.is_held(model)
        ]
        return [model for _, model in sorted(heads)]

    # ---- the loop

    def run(self, until_ms: float) -> None:
        """All arrivals, and then until everything is done, at the latest at `until_ms`."""
        self.policy.begin(self)
        for job in self.jobs:
            self._at(job.request.arrival_ms, partial(self._arrive, job))
        if self.policy.is_ticked:
            self._at(self.setting.tick_ms, self._tick)
        self._at(self.setting.tick_ms, self._watch)
        while self._events and self._left:
            at_ms, _, happen = heapq.heappop(self._events)
            if at_ms > until_ms:
                break
            self.now_ms = at_ms
            if happen():
                self.policy.decide(self)

    # ---- what happens; True when the policy should hear of it

    def _tick(self) -> bool:
        self._at(self.now_ms + self.setting.tick_ms, self._tick)
        for worker in self.workers:
            worker.read_ahead(self.now_ms)
        return True

    def _watch(self) -> bool:
        self._at(self.now_ms + self.setting.tick_ms, self._watch)
        overdue_ms = {}
        for model, since_ms in self.absent_since.items():
            late_ms = [
                max(job.request.arrival_ms, since_ms) + RULES.target_ms(job.request.priority)
                for _, job in self.queues.get(model, ())
            ]
            if late_ms and min(late_ms) <= self.now_ms:
                overdue_ms[model] = min(late_ms)
        self.bound.look(overdue_ms, self.now_ms)
        return False

    def _arrive(self, job: Job) -> bool:
        """News when nobody has the model ready: the front nudges the controller then."""
        model = job.request.model
        key = (model, job.request.priority)
        self.arrivals[key] = self.arrivals.get(key, 0) + 1
        heapq.heappush(self.queues.setdefault(model, []), (job.order, job))
        self.dispatch(model)
        self._note_absence(model)
        return not self.is_ready(model)

    def dispatch(self, model: str) -> None:
        queue = self.queues.get(model)
        while queue:
            free = [
                worker for worker in self.workers if model in worker.runners and worker.runners[model].free_slots > 0
            ]
            if not free:
                break
            worker = min(free, key=lambda each: (each.device.count, each.name))
            runner, (_, job) = worker.runners[model], heapq.heappop(queue)
            job.started_ms = self.now_ms
            runner.running.append(worker.device.add(job, runner.model, self.now_ms))
            runner.last_used_ms = self.now_ms
            runner.uses += 1
            worker.version += 1
            self._schedule(worker)
        if queue is not None and not queue:
            del self.queues[model]

    def _step(self, worker: Worker, version: int) -> bool:
        if worker.device.version != version:
            return False
        ended = worker.device.due(self.now_ms)
        for sequence in ended:
            worker.device.remove(sequence, self.now_ms)
            job, runner = sequence.job, worker.runners[sequence.model.id]
            job.finished_ms = self.now_ms
            runner.running.remove(sequence)
            self._learn(sequence.model.id, self.now_ms - job.started_ms)
            runner.last_used_ms = self.now_ms
            worker.version += 1
            if not runner.running:
                runner.idle_since_ms = self.now_ms
                if runner.state == DRAINING:
                    self._at(self.now_ms + self.setting.hardware.stop_ms, partial(self._gone, worker, runner))
        self._schedule(worker)
        for model in {sequence.model.id for sequence in ended}:
            self.dispatch(model)
        self._left -= len(ended)
        return bool(ended)

    def _loaded(self, worker: Worker, runner: Runner) -> bool:
        if runner.state != STARTING:
            return False
        runner.state, runner.since_ms, runner.idle_since_ms = READY, self.now_ms, self.now_ms
        runner.last_used_ms = self.now_ms
        worker.touch_cache(runner.model)
        worker.version += 1
        since = self.absent_since.pop(runner.model.id, None)
        if since is not None:
            self.longest_absence_ms = max(self.longest_absence_ms, self.now_ms - since)
        self.dispatch(runner.model.id)
        return True

    def _park(self, worker: Worker, runner: Runner) -> bool:
        if runner.state != DRAINING or worker.runners.get(runner.model.id) is not runner or not runner.running:
            return False
        queue = self.queues.setdefault(runner.model.id, [])
        for sequence in runner.running:
            worker.device.remove(sequence, self.now_ms)
            heapq.heappush(queue, (sequence.job.order, sequence.job))
        runner.running.clear()
        self.dispatch(runner.model.id)  # another replica may have free slots
        self._note_absence(runner.model.id)
        self._schedule(worker)
        self._at(self.now_ms + self.setting.hardware.stop_ms, partial(self._gone, worker, runner))
        return True

    def _gone(self, worker: Worker, runner: Runner) -> bool:
        if worker.runners.get(runner.model.id) is runner:
            del worker.runners[runner.model.id]
            worker.version += 1
            self._note_absence(runner.model.id)
            self._start_loads(worker)
        return True

    def _start_loads(self, worker: Worker) -> None:
        worker.read_ahead(self.now_ms)
        for runner in worker.runners.values():
            if runner.state != STARTING or runner.starts_at_ms is not None:
                continue
            if worker.used_bytes + runner.model.bytes > worker.budget_bytes:
                continue
            duration = self.setting.load_ms(runner.model, is_cached=worker.is_cached(runner.model.id))
            runner.starts_at_ms = max(self.now_ms, worker.channel_free_ms)
            runner.ready_at_ms = runner.starts_at_ms + duration
            worker.channel_free_ms = runner.ready_at_ms - self.setting.hardware.init_ms
            worker.loading_ms += duration
            worker.version += 1
            self.loads += 1
            self._at(runner.ready_at_ms, partial(self._loaded, worker, runner))

    def _learn(self, model: str, run_ms: float) -> None:
        mean, count = self.service.get(model, (0.0, 0))
        count += 1
        self.service[model] = (mean + (run_ms - mean) / min(count, 10), count)

    def _schedule(self, worker: Worker) -> None:
        at_ms = worker.device.next_event_ms()
        if at_ms is not None:
            self._at(at_ms, partial(self._step, worker, worker.device.version))

    def _at(self, at_ms: float, happen: Callable[[], bool]) -> None:
        self._number += 1
        heapq.heappush(self._events, (at_ms, self._number, happen))
