"""Cached answers of a real model, and a shared job that loses its worker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support.stack import DEMO_MODELS, Api, Stack, kill, wait_until

pytestmark = pytest.mark.e2e

MODEL = "keepwarm-demo-q8_0"
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "What is a queue?"}], "temperature": 0}
LONG = BODY | {"max_tokens": 1000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    shutil.copy(DEMO_MODELS / f"{MODEL}.gguf", models)
    (models / "models.yaml").write_text(f"models: {{{MODEL}: {{cache: {{ttl: 1h}}}}}}")
    return models


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), models, KEEPWARM_LEASE_S="2") as stack:
        yield stack


@pytest.fixture(scope="module")
def api(stack: Stack) -> Api:
    return stack.start_all()


def ask(api: Api, body: dict) -> tuple[str, str]:
    """What the cache had, and the text."""
    with httpx2.Client(base_url=api.url, timeout=60) as client:
        reply = client.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    if not body.get("stream"):
        return reply.headers["x-keepwarm-cache"], reply.json()["choices"][0]["message"]["content"]
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1]
    texts = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
    return reply.headers["x-keepwarm-cache"], "".join(texts)


def test_the_text_is_the_same_whole_and_streamed(api: Api) -> None:
    outcome, text = ask(api, BODY)
    assert (outcome, bool(text)) == ("miss", True)
    assert ask(api, BODY) == ask(api, BODY | {"stream": True}) == ("hit", text)
    seeded = BODY | {"temperature": 1, "seed": 5}
    assert [ask(api, each)[0] for each in (seeded, seeded, seeded | {"seed": 6})] == ["miss", "hit", "miss"]
    assert ask(api, seeded) == ask(api, seeded | {"stream": True})


def test_twins_survive_the_worker_of_the_job_that_they_share(stack: Stack, api: Api) -> None:
    stack.start_worker()
    api.wait_ready(workers=2)
    with ThreadPoolExecutor() as pool:
        twins = [pool.submit(ask, api, LONG) for _ in range(3)]
        wait_until(lambda: any(runner["in_flight"] for runner in api.runners(MODEL)), "the runner is seen busy", 5)
        busy = [
            worker
            for worker in api.pool()["workers"]
            for runner in worker["runners"]
            if runner["model"] == MODEL and runner["in_flight"]
        ]
        assert len(busy) == 1
        kill(busy[0]["pid"])
        answers = [twin.result() for twin in twins]
    assert sorted(outcome for outcome, _ in answers) == ["miss", "shared", "shared"]
    (text,) = {text for _, text in answers}
    outcome, again = ask(api, LONG)
    assert (outcome, again) == ("hit", text)
    jobs = api.http.get("/v1/jobs").json()["data"]
    assert jobs[0]["attempt"] == 2  # of the one job that all of them were
    undisturbed = ask(api, LONG | {"max_tokens": 200})
    assert undisturbed[0] == "miss"
    assert text.startswith(undisturbed[1])


def test_a_replaced_file_is_asked_anew(api: Api, models: Path) -> None:
    short = BODY | {"max_tokens": 3}
    ask(api, short)
    assert [ask(api, each)[0] for each in (BODY, short)] == ["hit", "hit"]
    new = models / "new.partial"
    shutil.copy(DEMO_MODELS / "keepwarm-demo-q8_0.gguf", new)
    new.rename(models / f"{MODEL}.gguf")
    wait_until(lambda: ask(api, short)[0] == "miss", "the folder was looked at", 15)
    assert ask(api, BODY)[0] == "miss"
