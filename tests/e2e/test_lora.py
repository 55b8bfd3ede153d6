"""LoRA adapters over HTTP: models for clients, served by the one runner of their base."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.support.stack import Api, Stack, wait_until
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.e2e

YAML = "models: {base: {slots: 3}, formal: {base: base, alias: polite}, rhyming: {base: base}"
NAMES = ("base", "formal", "rhyming")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "base.gguf")
    for seed, name in enumerate(("formal", "rhyming")):
        write_tiny_lora(folder / f"{name}.gguf", seed=seed)
    (folder / "models.yaml").write_text(YAML + "}")
    return folder


@pytest.fixture(scope="module")
def api(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with Stack(tmp_path_factory.mktemp("home"), models) as stack:
        yield stack.start_all()


@pytest.fixture(scope="module")
def client(api: Api) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0)


def say(client: openai.OpenAI, model: str, max_tokens: int = 40) -> openai.types.Completion:
    return client.completions.create(model=model, prompt="the inner the", temperature=0, max_tokens=max_tokens)


def details(api: Api, model: str) -> dict:
    return api.http.get(f"/v1/models/{model}").json()["keepwarm"]


@pytest.fixture(scope="module")
def texts(api: Api, client: openai.OpenAI) -> dict[str, str]:
    """What each says alone; the very first request is for a cold adapter."""
    assert details(api, "formal")["state"] == "cold"
    found = {name: say(client, name).choices[0].text for name in ("formal", "base", "rhyming")}
    assert len(set(found.values())) == 3
    return found


def test_job_for_a_cold_adapter_loads_its_base(api: Api, client: openai.OpenAI, texts: dict[str, str]) -> None:
    wait_until(lambda: bool(api.runners()), "a heartbeat tells of the runner")
    (runner,) = api.runners()
    assert (runner["model"], set(runner["adapters"])) == ("base", {"formal", "rhyming"})
    assert [(details(api, name)["state"], details(api, name)["base"]) for name in NAMES] == [
        ("warm", None),
        ("warm", "base"),
        ("warm", "base"),
    ]
    why = api.http.get("/v1/pool/decisions?model=formal").json()["data"]
    assert ("load", "base") in {(each["action"], each["model"]) for each in why}


def test_base_and_adapters_answer_together_as_they_do_alone(
    api: Api, client: openai.OpenAI, texts: dict[str, str]
) -> None:
    with ThreadPoolExecutor(9) as threads:
        answers = list(threads.map(lambda name: say(client, name), NAMES * 3))
    for name, answer in zip(NAMES * 3, answers, strict=True):
        assert (answer.model, answer.choices[0].text) == (name, texts[name])
        assert answer.usage is not None and answer.usage.completion_tokens > 0
    assert say(client, "polite").model == "formal"
    assert len(api.runners()) == 1
    metrics = api.http.get("/metrics").text
    for name in NAMES:
        assert f'keepwarm_generation_tokens_total{{model_name="{name}"}}' in metrics
        assert f'keepwarm_num_requests_running{{model_name="{name}"}}' in metrics


def test_crash_interrupts_the_jobs_of_all_and_changes_no_text(api: Api, texts: dict[str, str]) -> None:
    (before,) = api.runners()
    body = {"prompt": "the inner the", "temperature": 0, "max_tokens": 40}
    jobs = {name: api.submit(model=name, **body) for name in NAMES}
    os.kill(before["pid"], signal.SIGKILL)
    ended = {name: api.finished(job) for name, job in jobs.items()}
    assert {name: each["state"] for name, each in ended.items()} == dict.fromkeys(NAMES, "succeeded")
    assert {name: each["result"]["text"] for name, each in ended.items()} == texts


def test_operator_warms_and_evicts_an_adapter_with_its_base(api: Api, texts: dict[str, str]) -> None:
    assert api.http.post("/v1/models/formal/evict").json()["model"] == "base"
    wait_until(lambda: not api.runners("base"), "the base is evicted")
    assert api.http.post("/v1/models/formal/warm").json()["model"] == "base"
    wait_until(lambda: details(api, "formal")["state"] == "warm", "the adapter is warm")


def test_adapters_come_and_go_while_the_base_serves(
    api: Api, client: openai.OpenAI, models: Path, texts: dict[str, str]
) -> None:
    write_tiny_lora(models / "terse.gguf", seed=5)
    write_tiny_lora(models / "torn.gguf", seed=6, width=32)  # a good header; its tensors fit no base
    (models / "models.yaml").write_text(YAML + ", terse: {base: base}, torn: {base: base}}")
    wait_until(lambda: state_of(api, "torn") == "failed", "the broken adapter says so")
    assert "torn.gguf" in details(api, "torn")["reason"]
    with pytest.raises(openai.APIStatusError, match="torn"):
        say(client, "torn")
    assert say(client, "terse").choices[0].text not in texts.values()
    assert {name: say(client, name).choices[0].text for name in NAMES} == texts
    assert len(api.runners()) == 1


def state_of(api: Api, model: str) -> str | None:
    """None: nobody knows it yet."""
    answer = api.http.get(f"/v1/models/{model}")
    return answer.json()["keepwarm"]["state"] if answer.status_code == 200 else None
