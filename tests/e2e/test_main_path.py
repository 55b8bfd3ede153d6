"""Submit over HTTP, run on a warm model, stream the tokens back: real processes, real models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import openai
import pytest

from tests.support.gguf_bytes import string
from tests.support.stack import DEMO_MODELS, Api, Stack, wait_until
from workers.gguf_header import VOCABULARY, read_header

pytestmark = pytest.mark.e2e

Q8, F16 = "keepwarm-demo-q8_0", "keepwarm-demo-f16"
QUESTIONS = [
    "What is Keepwarm?",
    "What is a warm pool?",
    "Tell me a story about a fox.",
    "Tell me a story about a boat.",
    "What is 3 plus 4?",
    "Who are you?",
    "How are you today?",
    "What does the controller do?",
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models = tmp_path_factory.mktemp("models")
    for path in DEMO_MODELS.glob("*.gguf"):
        shutil.copy(path, models)
    whole = (models / f"{Q8}.gguf").read_bytes()
    (models / "truncated.gguf").write_bytes(whole[: len(whole) // 2])
    (models / "no-gguf.gguf").write_bytes(b"this is no model")
    tokens = cast("tuple[str, ...]", read_header(models / f"{Q8}.gguf").metadata[VOCABULARY])
    one, other, *_ = [token for token in tokens if len(token.encode()) == 4]  # llama.cpp aborts on twins
    (models / "twins.gguf").write_bytes(whole.replace(string(one), string(other), 1))
    with Stack(tmp_path_factory.mktemp("home"), models) as stack:
        yield stack


@pytest.fixture(scope="module")
def api(stack: Stack) -> Api:
    return stack.start_all()


@pytest.fixture(scope="module")
def client(api: Api) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0)


def ask(client: openai.OpenAI, question: str, model: str = Q8) -> str:
    completion = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=60
    )
    return completion.choices[0].message.content or ""


def test_sixteen_greedy_requests_at_once_give_the_text_that_each_gives_alone(client: openai.OpenAI) -> None:
    alone = {question: ask(client, question) for question in QUESTIONS}
    assert all(alone.values())
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda question: ask(client, question), QUESTIONS * 2))
    assert together == [alone[question] for question in QUESTIONS * 2]


def test_streamed_text_equals_the_whole_answer(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=Q8, messages=[{"role": "user", "content": QUESTIONS[1]}], temperature=0, max_tokens=60, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ask(client, QUESTIONS[1])


@pytest.mark.parametrize("cut_after", [1, 5, 17])
def test_cut_stream_resumes_byte_identical(api: Api, cut_after: int) -> None:
    job_id = api.submit(model=Q8, prompt="Once upon a time", max_tokens=60, ignore_eos=True, seed=7)
    head = []
    with api.events(job_id) as events:
        for event in events:
            head.append(event)
            if len(head) == cut_after:
                break
    with api.events(job_id, after=head[-1][0]) as events:
        tail = list(events)
    with api.events(job_id) as events:
        uncut = list(events)
    assert head + tail == uncut
    assert [seq for seq, _, _ in uncut] == list(range(1, len(uncut) + 1))
    text = "".join(json.loads(data)["text"] for _, kind, data in uncut if kind == "tokens")
    job = api.finished(job_id)
    assert (job["state"], job["result"]["text"]) == ("succeeded", text)
    assert job["result"]["usage"]["completion_tokens"] == 60


def test_broken_models_are_shown_with_their_reason_and_the_others_serve(api: Api, client: openai.OpenAI) -> None:
    models = {model["id"]: model["keepwarm"] for model in api.http.get("/v1/models").json()["data"]}
    assert {name for name, card in models.items() if card["state"] == "failed"} == {"truncated", "no-gguf", "twins"}
    assert models["truncated"]["reason"]
    assert "twice" in models["twins"]["reason"]
    with pytest.raises(openai.APIStatusError) as failure:
        ask(client, "hello", model="no-gguf")
    assert failure.value.status_code == 503
    assert ask(client, QUESTIONS[0], model=F16)


def test_unknown_model_is_not_found_with_the_nearest_names(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="keepwarm-demo-q8_0"):
        ask(client, "hello", model="keepwarm-demo-q8")


def test_prompt_beyond_the_context_is_refused_with_both_numbers(api: Api, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"The prompt has \d{4,} tokens, .* holds 4096"):
        ask(client, "word " * 6000)
    refused = api.http.post("/v1/jobs", json={"model": Q8, "prompt": "word " * 6000})
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    assert "4096" in refused.json()["detail"]


def test_running_job_is_cancelled_and_its_slot_is_free(api: Api) -> None:
    job_id = api.submit(model=Q8, prompt="Once", max_tokens=4000, ignore_eos=True)
    with api.events(job_id) as events:
        next(events)
        assert api.http.delete(f"/v1/jobs/{job_id}").is_success
        assert json.loads(list(events)[-1][2])["state"] == "cancelled"
    wait_until(lambda: all(runner["in_flight"] == 0 for runner in api.runners(Q8)), "the slot is free", 5)


def test_client_that_leaves_a_stream_cancels_its_job(api: Api) -> None:
    body = {"model": Q8, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with api.http.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
        job_id = response.headers["x-keepwarm-job"]
    assert api.finished(job_id)["state"] == "cancelled"


def test_one_api_dies_and_the_stream_goes_on_at_another(stack: Stack, api: Api) -> None:
    doomed = stack.start_api()
    doomed.wait_ready()
    job_id = doomed.submit(model=Q8, prompt="Once upon a time", max_tokens=400, ignore_eos=True)
    with doomed.events(job_id) as events:
        first = [next(events) for _ in range(3)]
        doomed.process.kill()
    with api.events(job_id, after=first[-1][0]) as events:
        rest = list(events)
    assert [seq for seq, _, _ in first + rest] == list(range(1, len(first) + len(rest) + 1))
    assert json.loads(rest[-1][2])["state"] == "succeeded"


def test_running_streams_do_not_need_the_controller(stack: Stack, api: Api, client: openai.OpenAI) -> None:
    controller = next(p for p in stack.processes if "tasks.controller" in p.args)  # type: ignore[operator]
    job_id = api.submit(model=Q8, prompt="Once upon a time", max_tokens=300, ignore_eos=True)
    with api.events(job_id) as events:
        next(events)
        controller.kill()
        controller.wait()
        assert json.loads(list(events)[-1][2])["state"] == "succeeded"
    assert ask(client, QUESTIONS[0])  # a warm model needs no decision
    stack.start_controller()


def test_two_models_share_a_budget_that_holds_one(tmp_path: Path) -> None:
    with Stack(tmp_path, KEEPWARM_MEMORY_BUDGET="140MB") as stack:
        api = stack.start_all()
        for model in (Q8, F16, Q8):
            job = api.finished(api.submit(model=model, prompt="Once", max_tokens=8))
            assert job["state"] == "succeeded", job
            pool = api.pool()["workers"][0]
            assert pool["used_bytes"] <= pool["budget_bytes"]


def test_model_that_never_fits_fails_with_the_arithmetic(tmp_path: Path) -> None:
    with Stack(tmp_path, KEEPWARM_MEMORY_BUDGET="20MB") as stack:
        api = stack.start_all()
        response = api.http.post("/v1/completions", json={"model": Q8, "prompt": "Once"})
        assert response.status_code == 503
        assert "MiB" in response.json()["error"]["message"]


def test_store_that_is_away_costs_a_503_and_nothing_else(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        api = stack.start_all()
        before = api.finished(api.submit(model=Q8, prompt="Once", max_tokens=4))
        store = stack.processes[0]
        store.terminate()
        store.wait()
        away = api.http.post("/v1/completions", json={"model": Q8, "prompt": "Once"})
        assert away.status_code == 503
        assert away.json()["error"]["code"] == "store_unavailable"
        assert api.http.get("/livez").is_success
        assert api.http.get("/readyz").status_code == 503
        stack.start_store()
        api.wait_ready()
        assert api.http.get(f"/v1/jobs/{before['id']}").json() == before
        assert api.finished(api.submit(model=Q8, prompt="Once", max_tokens=4))["state"] == "succeeded"
