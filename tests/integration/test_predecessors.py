"""What a new worker does about one that was killed on its host: on a real server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tasks.fleet import WorkerReport
from tasks.generation import GenerationRequest
from tasks.jobs import Priority, WorkerId, new_job_id
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.admission_store import AdmissionStore
from tasks.store.connection import Client
from tasks.store.fleet_store import FleetStore
from tasks.store.lease_store import LeaseStore
from workers.__main__ import PREDECESSOR_SILENT_MS, _prepare_record
from workers.clock import StoreTime

OTHER = WorkerId("other")


def pid_of_a_dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("pid", "host", "silent_ms", "stays", "keeps_its_jobs"),
    [
        pytest.param(None, socket.gethostname(), 2 * PREDECESSOR_SILENT_MS, False, False, id="killed"),
        pytest.param(None, socket.gethostname(), 0, True, True, id="still heard of"),
        pytest.param(None, "elsewhere", 2 * PREDECESSOR_SILENT_MS, True, True, id="on another host"),
        pytest.param(os.getppid(), socket.gethostname(), 2 * PREDECESSOR_SILENT_MS, True, True, id="slow"),
        pytest.param(os.getpid(), socket.gethostname(), 2 * PREDECESSOR_SILENT_MS, False, True, id="with our own pid"),
    ],
)
def test_worker_that_was_killed_here_is_forgotten_and_one_that_may_live_keeps_its_jobs(
    client: Client,
    store_settings: StoreSettings,
    admissions: AdmissionStore,
    *,
    pid: int | None,
    host: str,
    silent_ms: int,
    stays: bool,
    keeps_its_jobs: bool,
) -> None:
    fleet, leases = FleetStore(client), LeaseStore(client, store_settings)
    job_id = admissions.admit(
        new_job_id(),
        GenerationRequest(model="m", prompt="x"),
        priority=Priority.DEFAULT,
        deadline_ms=None,
        idempotency_key=None,
    ).job_id
    leases.claim(job_id, "m", OTHER)
    fleet.heartbeat(
        WorkerReport(
            id=OTHER, pid=pid or pid_of_a_dead_process(), host=host, device="cpu", budget_bytes=1, used_bytes=0,
            started_ms=0,
        )
    )  # fmt: skip
    client.zadd(keys.WORKERS_SEEN, {OTHER: fleet.now_ms() - silent_ms})
    _prepare_record(fleet, leases, StoreTime(fleet.now_ms))
    assert [report.id for report in fleet.fleet().workers] == ([OTHER] if stays else [])
    assert [expired for expired, _, _ in leases.expired(10)] == ([] if keeps_its_jobs else [job_id])
