"""The warm pool as users of two workers see it: fallbacks, clients that leave, replicas."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.support.stack import DEMO_MODELS, Api, Stack, wait_until

pytestmark = pytest.mark.e2e

FILE = DEMO_MODELS / "keepwarm-demo-q8_0.gguf"
SETTINGS = """
models:
  steady: {alias: gpt-4o-mini}
  broken: {alias: best, fallback: GPT-4o-mini}
  hopeless: {fallback: nobody}
  hot: {slots: 1, max_replicas: 2}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("steady", "left", "hot"):
        shutil.copy(FILE, folder / f"{name}.gguf")
    for name in ("broken", "hopeless"):
        (folder / f"{name}.gguf").write_bytes(FILE.read_bytes()[:900_000])
    (folder / "models.yaml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Api]:
    behaviour = '{"step_ms": 50, "load_s": 2}'
    home = tmp_path_factory.mktemp("home")
    with Stack(home, models, KEEPWARM_ENGINE="fake", KEEPWARM_FAKE=behaviour) as stack:
        yield stack.start_all(workers=2)


def reasons(api: Api, model: str) -> set[str]:
    decisions = api.http.get("/v1/pool/decisions", params={"model": model}).json()["data"]
    return {f"{each['action']} {each['reason']}" for each in decisions}


def test_fallback_answers_for_a_broken_file_and_the_answer_names_it(api: Api) -> None:
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0)
    whole = client.completions.create(model="best", prompt="Once", max_tokens=3)
    assert (whole.model, whole.usage and whole.usage.completion_tokens) == ("steady", 3)
    chunks = list(client.completions.create(model="broken", prompt="Once", max_tokens=3, stream=True))
    assert {chunk.model for chunk in chunks} == {"steady"}
    assert "fallback load_failed" in reasons(api, "broken")


def test_broken_file_without_a_fallback_that_can_answer_says_why(api: Api) -> None:
    reply = api.http.post("/v1/completions", json={"model": "hopeless", "prompt": "Once"})
    message = reply.json()["error"]["message"]
    assert reply.status_code == 503
    assert "hopeless.gguf: it is cut off" in message
    assert "Its fallback 'nobody' can't answer either: no live worker offers it." in message
    refused = api.http.post("/v1/models/hopeless/warm")
    assert "cut off" in refused.json()["detail"]


def test_load_goes_on_when_the_only_client_leaves(api: Api) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        api.http.post("/v1/completions", json={"model": "left", "prompt": "Once"}, timeout=0.5)
    wait_until(lambda: any(each["pid"] for each in api.runners("left")), "its model is being loaded")
    (starting,) = api.runners("left")
    (job,) = api.http.get("/v1/jobs", params={"model": "left"}).json()["data"]
    ended = api.finished(job["id"])
    assert (ended["state"], ended["attempt"]) == ("cancelled", 0), "it left before the model was ready"
    wait_until(lambda: [each["state"] for each in api.runners("left")] == ["ready"], "it is loaded")
    assert api.runners("left")[0]["pid"] == starting["pid"]
    assert 'keepwarm_model_loads_total{model_name="left"} 1.0' in api.http.get("/metrics").text


def test_replica_comes_for_a_line_of_long_jobs_none_of_which_has_ended(api: Api) -> None:
    jobs = [api.submit(model="hot", prompt="Once", max_tokens=3000, ignore_eos=True) for _ in range(6)]
    wait_until(
        lambda: [each["in_flight"] for each in api.runners("hot") if each["state"] == "ready"] == [1, 1],
        "both replicas work",
    )
    assert "load replica" in reasons(api, "hot")
    for job_id in jobs:
        assert api.http.delete(f"/v1/jobs/{job_id}").is_success
    assert {api.finished(job_id)["state"] for job_id in jobs} == {"cancelled"}
