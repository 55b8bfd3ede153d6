"""Embedding models and rerankers through real llama.cpp, checked against a forward pass in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from tasks.encoding import EncodingRequest
from tasks.errors import InputTooLong, InvalidRequest, WrongModelKind
from tasks.fleet import ModelKind
from tasks.generation import GenerationRequest
from tests.support.tiny_encoder import (
    CLS,
    CLS_ID,
    CONTEXT_LENGTH,
    FEED_FORWARD,
    LAYERS,
    MEAN,
    RANK,
    SEP_ID,
    TOKENS,
    WIDTH,
    ids_of,
    reference,
    write_tiny_encoder,
)
from tests.support.tiny_lora import write_tiny_lora
from workers.engine.base import EngineAdapter, EngineConfig
from workers.engine.llama_encoder import LlamaEncoder
from workers.messages import Done, Encode, Encoded, Generate

pytestmark = pytest.mark.integration

Load = Callable[..., LlamaEncoder]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    engines: list[LlamaEncoder] = []

    def load(stored: gguf.PoolingType | None = MEAN, **config: object) -> LlamaEncoder:
        path = write_tiny_encoder(tmp_path / "encoder.gguf", pooling=stored)
        kind = ModelKind.RERANK if stored == RANK else ModelKind.EMBED
        options = {"context_length": CONTEXT_LENGTH, "slots": 4, "threads": 1, "model_kind": kind, **config}
        engine = LlamaEncoder(EngineConfig(model_path=path, **options))  # type: ignore[arg-type]
        engine.load(lambda fraction: None)
        engines.append(engine)
        return engine

    yield load
    for engine in engines:
        engine.close()


def ask(key: int = 1, *, published_rows: int = 0, adapter: str = "", **request: object) -> Encode:
    what = EncodingRequest(model="m", **request)  # type: ignore[arg-type]
    return Encode(key=key, request=what, published_rows=published_rows, adapter=adapter)


def run(engine: LlamaEncoder, *messages: Encode) -> dict[int, tuple[list[np.ndarray], Done]]:
    rows: dict[int, list[np.ndarray]] = {message.key: [] for message in messages}
    ends: dict[int, Done] = {}
    for message in messages:
        engine.add(engine.prepare(message))
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, Encoded):
                rows[output.key] += [np.frombuffer(row, "<f4") for row in output.rows]
            elif isinstance(output, Done):
                ends[output.key] = output
    return {key: (rows[key], ends[key]) for key in rows}


@pytest.mark.parametrize("pooling", [MEAN, CLS])
def test_vectors_are_those_of_the_reference(load, pooling):
    texts = (["the", "cat"], ["warm", "river", "queue", "model", "dog"], ["cold"])
    rows, done = run(load(pooling), ask(texts=tuple(" ".join(words) for words in texts)))[1]
    for row, words in zip(rows, texts, strict=True):
        expected = reference([CLS_ID, *ids_of(*words), SEP_ID], pooling)
        np.testing.assert_allclose(row, expected, atol=2e-3)  # ggml's GELU is a table of half floats
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
    assert done.prompt_tokens == sum(len(words) + 2 for words in texts)
    assert done.finish_reason == "stop"


def test_scores_are_those_of_the_reference(load):
    rows, _ = run(load(RANK), ask(query="warm river", texts=("the cat", "cold queue model")))[1]
    for row, words in zip(rows, (["the", "cat"], ["cold", "queue", "model"]), strict=True):
        pair = [CLS_ID, *ids_of("warm", "river"), SEP_ID, *ids_of(*words), SEP_ID]
        np.testing.assert_allclose(row, reference(pair, RANK), atol=2e-3)
    assert rows[0] != pytest.approx(rows[1], abs=1e-3), "these weights tell nothing apart"


def test_an_input_has_the_same_vector_in_any_company(load):
    engine = load()
    many = tuple(" ".join([word] * (1 + index % 9)) for index, word in enumerate(["cat", "dog", "river"] * 30))
    together = run(engine, ask(1, texts=many), ask(2, texts=("warm queue",)))
    alone = run(engine, ask(1, texts=(many[0],)), ask(2, texts=("warm queue",)))
    assert len(together[1][0]) == len(many)
    np.testing.assert_allclose(together[1][0][0], alone[1][0][0], atol=1e-4)
    np.testing.assert_allclose(together[2][0][0], alone[2][0][0], atol=1e-4)


def test_an_adapter_has_vectors_of_its_own_beside_those_of_its_base(load, tmp_path):
    lora = tmp_path / "lora.gguf"
    write_tiny_lora(lora, architecture="bert", width=WIDTH, feed_forward=FEED_FORWARD, layers=LAYERS)
    engine = load(adapters=(EngineAdapter("tuned", lora, 0.1),))
    texts = ("the cat", "warm queue", "cold river dog")
    mixed = run(engine, ask(1, texts=texts), ask(2, texts=texts, adapter="tuned"), ask(3, texts=texts))
    tuned = run(engine, ask(texts=texts, adapter="tuned"))[1][0]
    for index, words in enumerate(texts):
        plain = reference([CLS_ID, *ids_of(*words.split()), SEP_ID], MEAN)
        for key in (1, 3):
            np.testing.assert_allclose(mixed[key][0][index], plain, atol=2e-3)
        np.testing.assert_allclose(mixed[2][0][index], tuned[index], atol=1e-4)
        assert np.abs(tuned[index] - plain).max() > 0.05


def test_token_ids_are_taken_as_they_are(load):
    engine = load()
    text = run(engine, ask(texts=("the cat",)))[1][0][0]
    ids = run(engine, ask(token_ids=((CLS_ID, *ids_of("the", "cat"), SEP_ID),)))[1][0][0]
    np.testing.assert_allclose(text, ids, atol=1e-6)


def test_fewer_dimensions_are_the_start_of_the_vector_at_length_1(load):
    engine = load()
    whole = run(engine, ask(texts=("the cat",)))[1][0][0]
    short = run(engine, ask(texts=("the cat",), dimensions=8))[1][0][0]
    assert len(whole) == WIDTH
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)


def test_a_resumed_encoding_goes_on_behind_what_was_published(load):
    engine = load()
    whole, _ = run(engine, ask(texts=("cat", "dog", "river")))[1]
    rest, done = run(engine, ask(texts=("cat", "dog", "river"), published_rows=2))[1]
    np.testing.assert_allclose(rest, whole[2:], atol=1e-4)
    assert done.prompt_tokens == 9


def test_a_cancelled_encoding_ends_without_a_reason(load):
    engine = load()
    engine.add(engine.prepare(ask(texts=("cat",))))
    engine.cancel(1)
    (end,) = engine.step()
    assert isinstance(end, Done)
    assert end.finish_reason is None
    assert not engine.has_work


def test_what_does_not_fit_is_refused_with_both_numbers(load):
    engine = load()
    with pytest.raises(InputTooLong, match=rf"input\[1\] has 102 tokens, but this model takes {CONTEXT_LENGTH}"):
        engine.prepare(ask(texts=("cat", "cat " * 100)))
    with pytest.raises(InvalidRequest, match=rf"its ids are 0 to {len(TOKENS) - 1}"):
        engine.prepare(ask(token_ids=((len(TOKENS),),)))


def test_work_of_another_kind_is_refused(load):
    engine = load()
    with pytest.raises(WrongModelKind, match="POST /v1/embeddings"):
        engine.prepare(Generate(key=1, request=GenerationRequest(model="m", prompt="x")))
    with pytest.raises(WrongModelKind, match="POST /v1/embeddings"):
        engine.prepare(ask(query="cat", texts=("dog",)))


def test_the_yaml_decides_the_pooling_that_the_file_leaves_open(load):
    rows, _ = run(load(None, pooling="cls"), ask(texts=("the cat",)))[1]
    np.testing.assert_allclose(rows[0], reference([CLS_ID, *ids_of("the", "cat"), SEP_ID], CLS), atol=2e-3)
