"""The promise, kept under faults of every kind at random moments. `make chaos` does the same for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.references import fake_reference
from tests.chaos.run import Plan, run_chaos
from tests.chaos.setup import FAKE_MODELS, fake_body, fake_cluster

SEED = 7


@pytest.mark.e2e
@pytest.mark.slow
async def test_every_acknowledged_job_ends_once_and_every_stream_is_whole(tmp_path: Path) -> None:
    plan = Plan(seed=SEED, models=FAKE_MODELS, jobs=45, kills=10, fault_interval_s=0.8, settle_s=45, limit_s=35)
    with fake_cluster(tmp_path, SEED) as cluster:
        outcome = await run_chaos(plan, cluster, fake_reference, fake_body)
    assert outcome.violations == []
    assert outcome.acknowledged == plan.jobs
    assert sum(outcome.states.values()) == plan.jobs
    assert sum(outcome.faults.values()) > 5, "hardly anything went wrong"
