"""A process is killed at every step of the protocol, and the jobs that were in its hands don't notice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.failpoints import FAILPOINTS, marker
from tasks.jobs import Priority
from tasks.store.backlog_store import _transport_list
from tasks.store.connection import connect
from tasks.store.fleet_store import FleetStore
from tests.chaos.checker import Evidence, Submission, Transcript, check
from tests.chaos.clients import Clients
from tests.chaos.cluster import Cluster, write_model_files
from tests.chaos.references import fake_reference
from tests.chaos.run import index_leftovers, read_records
from tests.support.stack import REPOSITORY, wait_until

pytestmark = pytest.mark.e2e

LIMIT_S = 60.0
JOBS = 3
COLD = {"before_place", "after_place", "after_resend_mark"}  # reached only on the way to a model that nobody holds
BREAK_RUNNER = {"before_release", "after_release"}  # reached only when an attempt breaks


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("failpoints")
    cluster = Cluster(
        folder / "home",
        random.Random(1),
        write_model_files(folder / "models", ("warm", *COLD)),
        workers=1,
        controllers=1,
        apis=1,
        max_skew_ms=0,
        KEEPWARM_ENGINE="fake",
        KEEPWARM_FAKE='{"step_ms": 8, "load_s": 0.4}',
        KEEPWARM_LEASE_S="1.5",
        KEEPWARM_MAX_ATTEMPTS="10",
        KEEPWARM_DRAIN_S="0.5",
    )
    with cluster:
        wait_until(lambda: is_ready(cluster), "the worker is on record")
        yield cluster


def is_ready(cluster: Cluster) -> bool:
    """The present worker process reports itself."""
    fleet = FleetStore(connect(cluster.store_settings)).fleet()
    return cluster.of("worker")[0].process.pid in {worker.pid for worker in fleet.workers}


def arm(cluster: Cluster, point: str) -> None:
    """Put a process with this failpoint in the place of the one that would get there."""
    role, _ = FAILPOINTS[point]
    member = cluster.of("worker" if role == "runner" else role)[0]
    member.settings = {"KEEPWARM_FAILPOINTS": f"{point}=kill:1"}
    old = member.process
    old.terminate()
    wait_until(lambda: member.process is not old, "the armed process has started")
    wait_until(lambda: is_ready(cluster), "the worker is on record")


def kill_when_working(cluster: Cluster, worker: bool) -> None:
    """Break what runs, so that an attempt fails or a lease ends."""
    client = connect(cluster.store_settings)
    wait_until(lambda: any(True for _ in client.scan_iter("kw:stream:*")), "tokens are flowing")
    for pid in [cluster.of("worker")[0].process.pid] if worker else cluster.runner_pids():
        os.kill(pid, signal.SIGKILL)


def drop_wakeups(cluster: Cluster, model: str) -> None:
    connect(cluster.store_settings).delete(*(_transport_list(model, priority) for priority in Priority))


async def run_jobs(cluster: Cluster, point: str) -> Evidence:
    clients = Clients(cluster.urls, random.Random(2))
    submissions: list[Submission] = []
    transcripts: list[Transcript] = []

    async def one_job(number: int) -> None:
        model = point if point in COLD else "warm"
        body = {"model": model, "prompt": f"{point} {number}", "max_tokens": 150, "temperature": 0, "ignore_eos": True}
        job_id = await clients.submit(body, key=f"{point}-{number}")
        submissions.append(Submission(job_id=job_id, reference=fake_reference(body)))
        await clients.read(job_id, "reader", cut_chance=0.01, into=transcripts)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for number in range(JOBS):
            group.create_task(one_job(number))
        if point in BREAK_RUNNER or point == "after_rescue":
            await asyncio.to_thread(kill_when_working, cluster, point == "after_rescue")
        if point == "after_resend_mark":
            await asyncio.to_thread(wait_until, lambda: len(submissions) == JOBS, "the jobs are acknowledged")
            drop_wakeups(cluster, point)
    await clients.http.aclose()
    assert not clients.violations
    return Evidence(
        submissions=submissions,
        records=read_records(cluster.store_settings, submissions),
        transcripts=transcripts,
    )


@pytest.mark.parametrize("point", FAILPOINTS)
async def test_killed_at(cluster: Cluster, point: str) -> None:
    await asyncio.to_thread(arm, cluster, point)
    evidence = await run_jobs(cluster, point)
    assert check(evidence) == []
    assert len(evidence.submissions) == JOBS
    assert marker(cluster.store_settings.home, point, 1).exists(), "nobody was killed"
    assert index_leftovers(connect(cluster.store_settings), ("warm", *COLD)) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [("after_claim", "write POINT=kill:TIMES"), ("in_the_end=kill:1", "known are after_admit"), ("a=kill:0", "write")],
)
@pytest.mark.parametrize("module", ["workers", "tasks.controller", "app.serve"])
def test_process_with_a_wrong_failpoint_refuses_to_start(tmp_path: Path, value: str, said: str, module: str) -> None:
    env = {**os.environ, "KEEPWARM_FAILPOINTS": value, "KEEPWARM_HOME": str(tmp_path)}
    end = subprocess.run([sys.executable, "-m", module], cwd=REPOSITORY, env=env, capture_output=True, timeout=60)
    assert end.returncode != 0
    assert f"KEEPWARM_FAILPOINTS: {said}" in end.stderr.decode()
