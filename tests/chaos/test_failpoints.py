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

from tasks.errors import StoreUnavailable
from tasks.failpoints import FAILPOINTS, marker
from tasks.jobs import JobId, Priority
from tasks.store import keys
from tasks.store.backlog_store import _transport_list
from tasks.store.connection import connect
from tasks.store.fleet_store import FleetStore
from tests.chaos.checker import Evidence, Submission, Transcript, check
from tests.chaos.clients import Clients
from tests.chaos.cluster import Cluster, write_model_files
from tests.chaos.references import fake_reference
from tests.chaos.run import Body, index_leftovers, read_records
from tests.support.stack import REPOSITORY, wait_until

pytestmark = pytest.mark.e2e

POINTS = [point for point, (process, _) in FAILPOINTS.items() if process != "batcher"]  # its own: tests/e2e
LIMIT_S = 45.0
JOBS = 3
COLD = {"before_place", "after_place", "after_resend_mark"}  # reached only on the way to a model that nobody holds
BREAK_ATTEMPT = {"before_release", "after_release", "after_rescue"}  # reached only when an attempt breaks


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
        settings={
            "KEEPWARM_ENGINE": "fake",
            "KEEPWARM_FAKE": '{"step_ms": 8, "load_s": 0.4}',
            "KEEPWARM_LEASE_S": "1",
            "KEEPWARM_MAX_ATTEMPTS": "10",
            "KEEPWARM_QUARANTINE_S": "0",
            "KEEPWARM_DRAIN_S": "0.5",
            "KEEPWARM_FAILPOINTS": ",".join(f"{point}=kill:1" for point in FAILPOINTS),
        },
    )
    for point in FAILPOINTS:
        spent = marker(folder / "home", point, 1)
        spent.parent.mkdir(parents=True, exist_ok=True)
        spent.touch()
    with cluster:
        wait_until(lambda: is_ready(cluster), "the worker is on record")
        yield cluster


def is_ready(cluster: Cluster) -> bool:
    """The present worker process reports itself."""
    try:
        fleet = FleetStore(connect(cluster.store_settings)).fleet()
    except StoreUnavailable:
        return False
    return cluster.of("worker")[0].process.pid in {worker.pid for worker in fleet.workers}


def arm(cluster: Cluster, point: str) -> None:
    """Every point of every process is watched and counts as spent; this one shall kill once."""
    marker(cluster.store_settings.home, point, 1).unlink()


def kill_when_working(cluster: Cluster, submissions: list[Submission], *, worker: bool) -> None:
    """Break what runs, so that an attempt fails or a lease ends."""
    client = connect(cluster.store_settings)
    streams = [keys.stream(JobId(submission.job_id)) for submission in submissions]
    wait_until(lambda: client.exists(*streams) > 0, "tokens are flowing")
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
        body: Body = {
            "model": model,
            "prompt": f"{point} {number}",
            "max_tokens": 400 if point in BREAK_ATTEMPT else 120,  # long enough to be killed in its middle
            "temperature": 0.0,
            "ignore_eos": True,
        }
        job_id = await clients.submit(body, key=f"{point}-{number}")
        submissions.append(Submission(job_id=job_id, reference=fake_reference(body)))
        await clients.read(job_id, "reader", cut_chance=0.01, into=transcripts)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for number in range(JOBS):
            group.create_task(one_job(number))
        if point == "after_resend_mark":
            await asyncio.to_thread(wait_until, lambda: len(submissions) == JOBS, "the jobs are acknowledged")
            drop_wakeups(cluster, point)
        elif point in BREAK_ATTEMPT:
            await asyncio.to_thread(wait_until, lambda: submissions != [], "a job is acknowledged")
            await asyncio.to_thread(kill_when_working, cluster, submissions, worker=point == "after_rescue")
    await clients.http.aclose()
    assert not clients.violations
    return Evidence(
        submissions=submissions,
        records=read_records(cluster.store_settings, submissions),
        transcripts=transcripts,
    )


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at(cluster: Cluster, point: str) -> None:
    arm(cluster, point)
    evidence = await run_jobs(cluster, point)
    assert check(evidence) == []
    assert len(evidence.submissions) == JOBS
    assert marker(cluster.store_settings.home, point, 1).exists(), "nobody was killed"
    assert index_leftovers(connect(cluster.store_settings), ("warm", *COLD)) == []


@pytest.mark.parametrize("module", ["workers", "tasks.controller", "app.serve"])
def test_process_with_a_wrong_failpoint_refuses_to_start(tmp_path: Path, module: str) -> None:
    env = {**os.environ, "KEEPWARM_FAILPOINTS": "in_the_end=kill:1", "KEEPWARM_HOME": str(tmp_path)}
    end = subprocess.run([sys.executable, "-m", module], cwd=REPOSITORY, env=env, capture_output=True, timeout=60)
    assert end.returncode != 0
    said = end.stderr.decode()
    assert "KEEPWARM_FAILPOINTS: there is no point 'in_the_end'; known are after_admit, " in said
