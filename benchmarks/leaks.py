"""Leaks: resident memory, file descriptors and threads of worker, nursery, front and controller over many load/evict
cycles.

A cycle asks a cold model for a few tokens, which loads it, then evicts it and waits until its process is gone. Several
copies of the demo model go through their cycles side by side.
What grows is judged by the least-squares slope behind the first thousand cycles, in which caches fill: Celery remembers
the ids of the last thousand jobs, and CPython's table of interned strings and its lists of free objects reach their
sizes. The result keeps the samples of all cycles.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import linear_regression

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from tests.support.stack import DEMO_MODELS, Api, Stack, wait_until

MODEL = "keepwarm-demo-q8_0"
LANES = 4  # copies of the model
FILLING_CYCLES = 1000  # are left out at the start
FEWEST_SAMPLES = 10  # behind them
MAX_RSS_GROWTH_BYTES = 1024  # per cycle
MAX_COUNT_GROWTH = 0.01  # descriptors or threads per cycle


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One process after so many cycles."""

    cycle: int
    process: str
    rss_bytes: int
    descriptors: int
    threads: int


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """Per cycle, and the last sample."""

    process: str
    rss_bytes: float
    descriptors: float
    threads: float
    last: Sample

    @property
    def is_flat(self) -> bool:
        return (
            self.rss_bytes <= MAX_RSS_GROWTH_BYTES
            and self.descriptors <= MAX_COUNT_GROWTH
            and self.threads <= MAX_COUNT_GROWTH
        )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    machine: dict[str, object]
    cycles: int
    seconds: float
    growth: list[Growth]
    samples: list[Sample]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks leaks", description=__doc__)
    parser.add_argument("--cycles", type=int, default=3000)
    parser.add_argument("--every", type=int, default=20, help="cycles between two samples")
    parser.add_argument("--out", type=Path, default=machine.result_path("leaks"))
    options = parser.parse_args(arguments)
    if options.cycles < (fewest := FILLING_CYCLES + FEWEST_SAMPLES * options.every):
        parser.error(f"--cycles {options.cycles} tells no growth: it takes at least {fewest}.")
    console = Console(stderr=True)
    described = machine.description()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="keepwarm-leaks-") as home:
        samples = run_cycles(Path(home), options.cycles, options.every, lambda done: console.print(f"{done} cycles"))
    growth = growth_of(samples)
    report = Report(
        machine=described,
        cycles=options.cycles,
        seconds=round(time.monotonic() - began, 1),
        growth=growth,
        samples=samples,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    Console().print(_table(growth))
    return 0 if all(each.is_flat for each in growth) else 1


def run_cycles(home: Path, cycles: int, every: int, advance: Callable[[int], None]) -> list[Sample]:
    samples: list[Sample] = []
    models = home / "models"
    models.mkdir()
    for number in range(LANES):
        shutil.copy(DEMO_MODELS / f"{MODEL}.gguf", models / f"copy-{number}.gguf")
    with Stack(home, models, KEEPWARM_EVICT_DRAIN_S="0.1") as stack:
        store = stack.start_store()
        processes = {"worker": stack.start_worker(), "controller": stack.start_controller()}
        api = stack.start_api()
        processes["api"] = api.process
        api.wait_ready()
        with ThreadPoolExecutor(LANES) as lanes:
            for first in range(0, cycles, every):
                num_done = min(every, cycles - first)
                shares = [len(range(lane, num_done, LANES)) for lane in range(LANES)]
                list(lanes.map(_cycles, [api] * LANES, [f"copy-{lane}" for lane in range(LANES)], shares))
                samples += [sample(first + num_done, name, process.pid) for name, process in processes.items()]
                samples += [sample(first + num_done, "nursery", pid) for pid in _nurseries(processes["worker"].pid)]
                advance(first + num_done)
        assert store.poll() is None, "the store has ended"
    return samples


def _title(process: psutil.Process) -> str:
    """Nothing of one that has just ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _nurseries(worker_pid: int) -> list[int]:
    """The process that the worker's runners are forked from, where there is one."""
    children = psutil.Process(worker_pid).children()
    return [child.pid for child in children if _title(child) == "keepwarm nursery"]


def _cycles(api: Api, model: str, count: int) -> None:
    body = {"model": model, "prompt": "Once", "max_tokens": 4, "temperature": 0}
    for _ in range(count):
        api.http.post("/v1/completions", json=body).raise_for_status()
        api.http.post(f"/v1/models/{model}/evict").raise_for_status()
        wait_until(lambda: not api.runners(model), "the model is evicted")


def sample(cycle: int, name: str, pid: int) -> Sample:
    process = psutil.Process(pid)
    return Sample(
        cycle=cycle,
        process=name,
        rss_bytes=process.memory_info().rss,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
    )


def growth_of(samples: Sequence[Sample]) -> list[Growth]:
    """One entry per process, of its samples behind the first cycles."""
    growth: list[Growth] = []
    for name in dict.fromkeys(each.process for each in samples):
        own = [each for each in samples if each.process == name]
        settled = [each for each in own if each.cycle > FILLING_CYCLES]
        cycles = [each.cycle for each in settled]
        growth.append(
            Growth(
                process=name,
                rss_bytes=linear_regression(cycles, [each.rss_bytes for each in settled]).slope,
                descriptors=linear_regression(cycles, [each.descriptors for each in settled]).slope,
                threads=linear_regression(cycles, [each.threads for each in settled]).slope,
                last=own[-1],
            )
        )
    return growth


def _table(growth: Sequence[Growth]) -> Table:
    table = Table("PROCESS", "RSS/CYCLE", "FDS/CYCLE", "THREADS/CYCLE", "RSS", "FDS", "THREADS", "FLAT")
    for each in growth:
        table.add_row(
            each.process,
            f"{each.rss_bytes:+.0f} B",
            f"{each.descriptors:+.4f}",
            f"{each.threads:+.4f}",
            f"{each.last.rss_bytes / 1024**2:.1f} MiB",
            str(each.last.descriptors),
            str(each.last.threads),
            "yes" if each.is_flat else "NO",
        )
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
