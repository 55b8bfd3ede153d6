"""Embeddings and rankings over HTTP, from real runner processes, with the official SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests.support.stack import Api, Stack
from tests.support.tiny_encoder import (
    CLS_ID,
    CONTEXT_LENGTH,
    MEAN,
    RANK,
    SEP_ID,
    WIDTH,
    ids_of,
    reference,
    write_tiny_encoder,
)
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.e2e


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    models = tmp_path_factory.mktemp("models")
    write_tiny_encoder(models / "vectors.gguf", pooling=MEAN)
    write_tiny_encoder(models / "unpooled.gguf", pooling=None)
    write_tiny_encoder(models / "scores.gguf", pooling=RANK)
    write_tiny_model(models / "text.gguf")
    (models / "models.yaml").write_text("models: {vectors: {matryoshka: true}}")
    home = tmp_path_factory.mktemp("home")
    # The first runner that has encoded something dies before its worker hears of it: the first test's job survives.
    with Stack(home, Path(models), KEEPWARM_FAILPOINTS="after_step=kill:1", KEEPWARM_MAX_INPUTS="40") as stack:
        yield stack.start_all()


@pytest.fixture(scope="module")
def client(api: Api) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0)


def test_vectors_survive_the_death_of_their_runner(api: Api, client: openai.OpenAI) -> None:
    reply = client.embeddings.with_raw_response.create(model="vectors", input=["the cat", "warm river queue"])
    answer = reply.parse()
    for entry, words in zip(answer.data, (["the", "cat"], ["warm", "river", "queue"]), strict=True):
        expected = reference([CLS_ID, *ids_of(*words), SEP_ID], MEAN)
        np.testing.assert_allclose(entry.embedding, expected, atol=2e-3)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 9
    job = api.http.get(f"/v1/jobs/{reply.headers['x-keepwarm-job']}").json()
    assert (job["state"], job["attempt"], job["failures"]) == ("succeeded", 2, 1)


def test_floats_and_base64_are_the_same_numbers(api: Api, client: openai.OpenAI) -> None:
    # The SDK asks for base64 when it is left the choice, and decodes it.
    decoded = client.embeddings.create(model="vectors", input="the cat").data[0].embedding
    floats = client.embeddings.create(model="vectors", input="the cat", encoding_format="float").data[0].embedding
    assert decoded == pytest.approx(floats, abs=1e-7)
    raw = api.http.post("/v1/embeddings", json={"model": "vectors", "input": "the cat", "encoding_format": "base64"})
    assert isinstance(raw.json()["data"][0]["embedding"], str)


def test_token_ids_are_an_input_too(client: openai.OpenAI) -> None:
    ids = [CLS_ID, *ids_of("the", "cat"), SEP_ID]
    text = client.embeddings.create(model="vectors", input="the cat").data[0].embedding
    assert client.embeddings.create(model="vectors", input=ids).data[0].embedding == pytest.approx(text, abs=1e-6)
    several = client.embeddings.create(model="vectors", input=[ids, ids[::-1]]).data
    assert [len(entry.embedding) for entry in several] == [WIDTH, WIDTH]


def test_dimensions_are_cut_only_where_the_model_was_made_for_it(client: openai.OpenAI) -> None:
    whole = np.array(client.embeddings.create(model="vectors", input="cat").data[0].embedding)
    short = client.embeddings.create(model="vectors", input="cat", dimensions=8).data[0].embedding
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="matryoshka: true"):
        client.embeddings.create(model="unpooled", input="cat", dimensions=8)
    with pytest.raises(openai.BadRequestError, match=f"has {WIDTH}, not 64"):
        client.embeddings.create(model="vectors", input="cat", dimensions=64)


def test_an_encoder_without_a_pooling_type_takes_the_mean(client: openai.OpenAI) -> None:
    vector = client.embeddings.create(model="unpooled", input="cat dog").data[0].embedding
    np.testing.assert_allclose(vector, reference([CLS_ID, *ids_of("cat", "dog"), SEP_ID], MEAN), atol=2e-3)


def test_documents_come_back_in_the_order_of_their_scores(api: Api) -> None:
    documents = ["the cat", {"text": "cold queue model"}, "warm river"]
    body = {"model": "scores", "query": "warm river", "documents": documents, "top_n": 2, "return_documents": True}
    answer = api.http.post("/v1/rerank", json=body).json()
    words = (["the", "cat"], ["cold", "queue", "model"], ["warm", "river"])
    pairs = [[CLS_ID, *ids_of("warm", "river"), SEP_ID, *ids_of(*each), SEP_ID] for each in words]
    expected = [float(reference(pair, RANK)[0]) for pair in pairs]
    best = sorted(range(3), key=lambda index: -expected[index])[:2]
    assert [result["index"] for result in answer["results"]] == best
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(
        [expected[index] for index in best], abs=2e-3
    )
    assert answer["results"][0]["document"] == {"text": " ".join(words[best[0]])}
    assert answer["usage"]["total_tokens"] == sum(map(len, pairs))


@pytest.mark.parametrize(
    ("route", "body", "says"),
    [
        ("/v1/chat/completions", {"model": "vectors", "messages": HELLO}, "POST /v1/embeddings"),
        ("/v1/completions", {"model": "scores", "prompt": "x"}, "POST /v1/rerank"),
        ("/v1/embeddings", {"model": "text", "input": "x"}, "POST /v1/chat/completions"),
        ("/v1/embeddings", {"model": "scores", "input": "x"}, "POST /v1/rerank"),
        ("/v1/rerank", {"model": "vectors", "query": "x", "documents": ["y"]}, "POST /v1/embeddings"),
    ],
)
def test_a_model_of_another_kind_is_a_400_that_names_its_route(api: Api, route: str, body: dict, says: str) -> None:
    error = error_of(api.http.post(route, json=body), 400)
    assert error["code"] == "wrong_model_kind"
    assert error["param"] == "model"
    assert says in error["message"]


def test_an_input_that_is_too_long_is_a_400_with_both_numbers(api: Api) -> None:
    for route, body, param in (
        ("/v1/embeddings", {"model": "vectors", "input": ["cat", "cat " * 100]}, "input[1]"),
        ("/v1/rerank", {"model": "scores", "query": "dog", "documents": ["cat " * 97]}, "documents[0]"),
    ):
        error = error_of(api.http.post(route, json=body), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert f"{param} has " in error["message"]
        assert f"this model takes {CONTEXT_LENGTH}" in error["message"]
    unknown = {"model": "vectors", "input": [[1, 2**30]]}
    assert error_of(api.http.post("/v1/embeddings", json=unknown), 400)["param"] == "input[0]"


def test_input_that_would_break_a_runner_is_a_400_and_it_lives_on(api: Api, client: openai.OpenAI) -> None:
    client.embeddings.create(model="vectors", input="the cat")
    (before,) = api.runners("vectors")
    inputs: list[Any] = [[10**9], [[CLS_ID], [-1]], [[CLS_ID] * (CONTEXT_LENGTH + 1)], [[]], "", ["cat"] * 41]
    for given in inputs:
        error_of(api.http.post("/v1/embeddings", json={"model": "vectors", "input": given}), 400)
    client.embeddings.create(model="vectors", input="the cat")
    assert [runner["pid"] for runner in api.runners("vectors")] == [before["pid"]]
