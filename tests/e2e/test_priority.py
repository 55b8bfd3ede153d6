"""Batch work gives way: through admission, the store's queues, the slot gate and the engine, with the demo model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stack import Api, Stack, wait_until

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
STORY = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True, "temperature": 0}


def states_of(api: Api, job_ids: list[str]) -> list[str]:
    return [api.http.get(f"/v1/jobs/{job_id}").json()["state"] for job_id in job_ids]


def test_urgent_job_runs_at_once_on_a_model_full_of_batch_jobs_which_go_on_in_their_attempt(tmp_path: Path) -> None:
    with Stack(tmp_path, KEEPWARM_SLOTS="1") as stack:
        api = stack.start_all()
        alone = api.finished(api.submit(**{**STORY, "max_tokens": 100}))["result"]["text"]
        batch = [api.submit(**STORY, priority="batch") for _ in range(2)]
        wait_until(lambda: "running" in states_of(api, batch), "a batch job runs")
        urgent = api.finished(api.submit(model=MODEL, prompt="Hello", max_tokens=8, priority="interactive"))
        assert urgent["state"] == "succeeded"
        assert sorted(states_of(api, batch)) == ["queued", "running"]  # no batch job was taken beyond the slots
        ended = [api.finished(job_id, 120) for job_id in batch]
        assert [(job["state"], job["attempt"]) for job in ended] == [("succeeded", 1)] * 2
        assert len({job["result"]["text"] for job in ended}) == 1
        assert ended[0]["result"]["text"].startswith(alone)
