"""Loads and steps on the same few cores, as on a machine without a GPU.

The threads of a step meet at a barrier after every operation, where they spin: a step gets on only while all of them
have a core at once. Load times are given as they were measured, beside whatever else ran; steps are slowed down by the
loads that are under way."""

from __future__ import annotations

from functools import partial
from math import comb

from benchmarks.simulation.cluster import STARTING, Cluster, Policy, Worker
from benchmarks.simulation.device import Device
from benchmarks.simulation.parameters import Hardware, Setting
from benchmarks.simulation.workload import Request
from benchmarks.swapping.worker_log import LoadSpan

MAX_LOADS = 4  # at once; the kernel prefers who has waited, so that nobody starves


def slowdown(num_loads: int, *, cores: int, threads: int) -> float:
    """How much longer steps take beside so many loads of one thread each, if the kernel gives the cores to any of all
    these threads alike: one over the chance that all threads of the step are among those that run."""
    together = min(threads, cores)
    others = min(num_loads, MAX_LOADS)
    if together + others <= cores:
        return 1.0
    return comb(together + others, cores) / comb(others, cores - together)


class SharedDevice(Device):
    """A device whose steps know of the loads beside them."""

    def __init__(self, hardware: Hardware, *, cores: int, threads: int) -> None:
        super().__init__(hardware)
        self._cores = cores
        self._threads = threads
        self.num_loads = 0

    def round_ms(self) -> float:
        return super().round_ms() * slowdown(self.num_loads, cores=self._cores, threads=self._threads)


class SharedCores(Cluster):
    """A cluster of machines like that."""

    def __init__(self, setting: Setting, requests: list[Request], policy: Policy, *, cores: int, threads: int) -> None:
        super().__init__(setting, requests, policy)
        self.load_spans: list[LoadSpan] = []
        self._devices: dict[str, SharedDevice] = {}
        for worker in self.workers:
            worker.device = self._devices[worker.name] = SharedDevice(setting.hardware, cores=cores, threads=threads)

    def _start_loads(self, worker: Worker) -> None:
        waiting = [each for each in worker.runners.values() if each.state == STARTING and each.starts_at_ms is None]
        super()._start_loads(worker)
        for runner in waiting:
            if runner.starts_at_ms is not None:
                self._at(runner.starts_at_ms, partial(self._count, worker, 1))
                self._at(runner.ready_at_ms, partial(self._count, worker, -1))
                begin_s, end_s = runner.starts_at_ms / 1000, runner.ready_at_ms / 1000
                self.load_spans.append(LoadSpan(model=runner.model.id, begin_s=begin_s, end_s=end_s))

    def _count(self, worker: Worker, change: int) -> bool:
        device = self._devices[worker.name]
        device.advance(self.now_ms)
        device.num_loads += change
        device.version += 1
        self._schedule(worker)
        return False
