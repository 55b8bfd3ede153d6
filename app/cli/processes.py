"""Which processes make up Keepwarm on one machine: command lines, environment, order of their end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

# A folder called `app` or `tasks` where the user happens to stand must not shadow ours, nor in grandchildren.
CHILD_ENV = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
PYTHON = (sys.executable, "-P", "-m")

STORE = (*PYTHON, "tasks.embedded_store")
WORKER = (*PYTHON, "workers")
CONTROLLER = (*PYTHON, "tasks.controller")
API = (*PYTHON, "app.serve")
BATCHER = (*PYTHON, "app.batches")
LIFELINE = "tasks.lifeline"
RUNNERS_EXIT_S = 3.0


class StopRank(IntEnum):
    """Who ends first. Workers drain while everything that they need is still there; the store flushes last."""

    WORKER = 0
    FRONT = 1
    CONTROLLER = 2
    STORE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process to keep alive."""

    name: str  # also the name of its log file
    argv: tuple[str, ...]
    stop_rank: StopRank
    stop_bound_s: float  # from SIGTERM to SIGKILL
    env: Mapping[str, str] = field(default_factory=dict)  # on top of ours and of CHILD_ENV


def store_process() -> ProcessSpec:
    return ProcessSpec(name="store", argv=STORE, stop_rank=StopRank.STORE, stop_bound_s=5.0)


def worker_processes(devices: Sequence[str | None], *, drain_s: float) -> tuple[ProcessSpec, ...]:
    """One per device (None: as the settings say). Running answers get `drain_s` to end; then they are parked, and the
    runners exit."""
    names = ["worker"] if len(devices) == 1 else [f"worker-{number}" for number in range(1, len(devices) + 1)]
    return tuple(
        ProcessSpec(
            name=name,
            argv=WORKER,
            stop_rank=StopRank.WORKER,
            stop_bound_s=drain_s + RUNNERS_EXIT_S,
            env={"KEEPWARM_DRAIN_S": str(drain_s), **_device_env(device)},
        )
        for name, device in zip(names, devices, strict=True)
    )


def _device_env(device: str | None) -> dict[str, str]:
    """CUDA numbers GPUs by their speed unless it is told to do as NVML, which sees them in the order of the bus."""
    return {} if device is None else {"KEEPWARM_DEVICE": device, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def controller_process() -> ProcessSpec:
    return ProcessSpec(name="controller", argv=CONTROLLER, stop_rank=StopRank.CONTROLLER, stop_bound_s=8.0)


def api_process() -> ProcessSpec:
    """What is open may end by itself for 3 s, is told of the end then, and cut after 5 s."""
    return ProcessSpec(name="api", argv=API, stop_rank=StopRank.FRONT, stop_bound_s=7.0)


def batcher_process() -> ProcessSpec:
    """Its batches are handed back within a few seconds."""
    return ProcessSpec(name="batcher", argv=BATCHER, stop_rank=StopRank.FRONT, stop_bound_s=7.0)


def flower_process(*, host: str, port: int, basic_auth: str | None) -> ProcessSpec:
    """The password travels in the environment: command lines can be read by every user of the machine."""
    return ProcessSpec(
        name="flower",
        argv=with_lifeline(flower_argv(host=host, port=port)),
        stop_rank=StopRank.FRONT,
        stop_bound_s=3.0,
        env=flower_env(basic_auth),
    )


def flower_argv(*, host: str, port: int) -> tuple[str, ...]:
    """Flower bounded: workers that are gone leave after a minute, and at most 5000 tasks are kept in memory."""
    return (
        *(*PYTHON, "celery", "--app", "tasks.celery_app", "--quiet", "flower"),
        f"--address={host}",
        f"--port={port}",
        "--purge_offline_workers=60",
        "--max_tasks=5000",
        "--persistent=False",
    )


def flower_env(basic_auth: str | None) -> dict[str, str]:
    return {"FLOWER_BASIC_AUTH": basic_auth} if basic_auth else {}


def with_lifeline(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The same command for a module that does not watch the lifeline itself.

    It also imports our `tasks` before Celery's command line puts the current folder in front of everything."""
    return (*PYTHON, LIFELINE, *argv[len(PYTHON) :])
