"""POST /v1/embeddings and /v1/rerank on a fake backend: what is asked for, what is refused, how it is worded."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from app.backend import Batch
from tasks.encoding import EncodingRequest
from tasks.fleet import ModelKind
from tasks.jobs import JobState, Priority, Usage
from tasks.stream_events import End, Reset, Vectors
from tests.support.front_fakes import FakeBackend, demo_worker, front_client

END = (3, End(state=JobState.SUCCEEDED, finish_reason="stop", usage=Usage(prompt_tokens=7, completion_tokens=0)))


def row(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def backend_of(kind: ModelKind, *rows: bytes) -> FakeBackend:
    worker = demo_worker()
    offers = tuple(msgspec.structs.replace(each, kind=kind, embedding_length=2) for each in worker.offers)
    batches: list[Batch] = [[(1, Vectors(rows))], [END]] if rows else []
    return FakeBackend(batches=batches, workers=(msgspec.structs.replace(worker, offers=offers),))


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_vectors_are_worded_as_openai_words_them():
    backend = backend_of(ModelKind.EMBED, row(0.6, 0.8), row(1.0, 0.0))
    answer = front_client(backend).post("/v1/embeddings", json={"model": "demo", "input": ["a", "b"]}).json()
    assert answer["object"] == "list"
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert answer["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    (submitted,) = backend.submitted
    assert submitted.request == EncodingRequest(model="demo", texts=("a", "b"))
    assert submitted.priority is Priority.INTERACTIVE


def test_vectors_before_a_reset_are_void():
    backend = backend_of(ModelKind.EMBED, row(1.0, 0.0))
    backend.batches = [
        [(1, Vectors((row(1.0, 0.0),)))],
        [(2, Reset(attempt=2, reason="why"))],
        [(3, Vectors((row(0.0, 1.0),)))],
        [END],
    ]
    answer = front_client(backend).post("/v1/embeddings", json={"model": "demo", "input": "a"}).json()
    assert [entry["embedding"] for entry in answer["data"]] == [[0.0, 1.0]]


def test_equal_scores_keep_the_order_of_the_documents():
    backend = backend_of(ModelKind.RERANK, row(0.5), row(0.9), row(0.5))
    body = {"model": "demo", "query": "q", "documents": ["a", "b", "c"]}
    results = front_client(backend).post("/v1/rerank", json=body).json()["results"]
    assert [result["index"] for result in results] == [1, 0, 2]
    assert "document" not in results[0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [["a"]]}, None),
        ({"input": [[1], "a"]}, None),
        ({"input": [-1]}, None),
        ({"input": [True]}, None),
        ({"input": 5}, None),
        ({"input": {"a": 1}}, None),
        ({"input": "\ud800"}, None),
        ({"input": ["a"] * 5}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 1}, "dimensions"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "dimensions": "2"}, "dimensions"),
        ({"input": "a", "priority": "urgent"}, "priority"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(body, param):
    backend = backend_of(ModelKind.EMBED)
    content = msgspec.json.encode({"model": "demo", **{k: v for k, v in body.items() if v != "\ud800"}})
    if body.get("input") == "\ud800":
        content = b'{"model": "demo", "input": "\\ud800"}'
    response = front_client(backend, max_inputs=4).post(
        "/v1/embeddings", content=content, headers={"content-type": "application/json"}
    )
    error = error_of(response, 400)
    if param is not None:
        assert error["param"] == param
    assert not backend.submitted


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": [1]}, "documents[0]"),
        ({"query": "q", "documents": [{"title": "a"}]}, "documents[0]"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
    ],
)
def test_a_bad_ranking_is_a_400_that_names_the_field(body, param):
    backend = backend_of(ModelKind.RERANK)
    response = front_client(backend).post("/v1/rerank", json={"model": "demo", **body})
    assert error_of(response, 400)["param"] == param
    assert not backend.submitted


def test_an_answer_that_would_be_too_large_is_refused_with_what_would_fit():
    backend = backend_of(ModelKind.EMBED)
    response = front_client(backend, max_result_bytes=1024).post(
        "/v1/embeddings", json={"model": "demo", "input": ["a"] * 129}
    )
    assert "send at most 128 inputs" in error_of(response, 400)["message"]


def test_a_chat_with_an_embedding_model_names_the_right_route():
    backend = backend_of(ModelKind.EMBED)
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    error = error_of(front_client(backend).post("/v1/chat/completions", json=body), 400)
    assert error["code"] == "wrong_model_kind"
    assert "POST /v1/embeddings" in error["message"]
    job = front_client(backend).post("/v1/jobs", json={"model": "demo", "prompt": "x"})
    assert job.status_code == 400
    assert job.json()["code"] == "wrong_model_kind"
