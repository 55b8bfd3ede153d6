"""Embedding models and rerankers on llama.cpp: one model, one context that pools each input to one row.

An input is computed within a single micro-batch, as pooling and attention in both directions demand; so the context's
micro-batch is as long as the longest input. Nothing is kept between batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from typing import Any

import numpy as np

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # before the library loads: it would run gdb on an abort

from llama_cpp import llama_cpp as api

from tasks.encoding import EncodingRequest
from tasks.errors import InputTooLong, InvalidRequest, ModelLoadFailed, WrongModelKind
from tasks.fleet import ModelKind
from workers.engine.base import EngineConfig, EngineFailed, ProgressCallback
from workers.engine.encoding import EncodeLoop, Encoding, Rows
from workers.engine.llama_adapters import NO_ADAPTERS, ActiveAdapter, LlamaAdapters
from workers.engine.llama_batch import LlamaBatch
from workers.engine.llama_context import ContextThreads, context_params, new_context
from workers.engine.llama_loading import load
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_model import LlamaModel
from workers.engine.turnstile import turnstile_for
from workers.estimate import ENCODER_INPUTS
from workers.messages import Encode, Generate, Output, Ready

_POOLING = {
    None: api.LLAMA_POOLING_TYPE_UNSPECIFIED,  # as the file says
    "mean": api.LLAMA_POOLING_TYPE_MEAN,
    "cls": api.LLAMA_POOLING_TYPE_CLS,
    "last": api.LLAMA_POOLING_TYPE_LAST,
    "rank": api.LLAMA_POOLING_TYPE_RANK,
}


def encoding_context(model: LlamaModel, config: EngineConfig, log: LlamaLog) -> Any:
    """A llama_context that pools. Raises ModelLoadFailed, mostly for want of memory."""
    params = context_params(config)
    params.n_ctx = params.n_batch = params.n_ubatch = config.context_length
    params.n_seq_max = ENCODER_INPUTS
    params.kv_unified = True  # of a decoder: inputs share the cells, whatever their lengths
    params.embeddings = True
    params.pooling_type = _POOLING[config.pooling]
    return new_context(model, params, log, of=f"for inputs of {config.context_length} tokens")


def output_growth_bytes(model: LlamaModel, config: EngineConfig) -> int:
    """What the output buffer grows by with the first batch of full length: llama.cpp begins with a row per input, and
    takes one per token, with room for logits too, which nobody computes (`llama_context::output_reserve`)."""
    rows = max(0, config.context_length - ENCODER_INPUTS)
    return rows * (model.vocabulary_size + int(api.llama_model_n_embd_out(model.pointer))) * 4


class EncoderContext:
    """An EncodingBackend: the compute buffers of one model."""

    def __init__(
        self, model: LlamaModel, config: EngineConfig, log: LlamaLog, adapters: LlamaAdapters = NO_ADAPTERS
    ) -> None:
        """Raises ModelLoadFailed when the context can't be created, mostly for want of memory."""
        self._pointer: Any = encoding_context(model, config, log)
        self._adapter = ActiveAdapter(self._pointer, adapters)
        self._turn = turnstile_for(config)
        self._threads = ContextThreads(self._pointer, config.threads)
        self._memory: Any = api.llama_get_memory(self._pointer)  # None: an encoder keeps nothing
        self._batch = LlamaBatch(config.context_length)
        is_score = api.llama_pooling_type(self._pointer) == api.LLAMA_POOLING_TYPE_RANK
        self.num_classes: int = api.llama_model_n_cls_out(model.pointer) if is_score else 0
        self._width = self.num_classes or api.llama_model_n_embd_out(model.pointer)

    def encode(self, inputs: Items[Items[int]], adapter: str = "") -> Rows:
        self._batch.fill_whole(inputs)
        self._adapter.use(adapter)
        with self._turn as threads:
            self._threads.use(threads)
            code = api.llama_decode(self._pointer, self._batch.struct)
        if code != 0:
            raise EngineFailed(f"llama_decode returned {code} for {len(inputs)} inputs.")
        rows = np.empty((len(inputs), self._width), dtype=np.float32)
        for index in range(len(inputs)):
            row = api.llama_get_embeddings_seq(self._pointer, index)
            rows[index] = np.ctypeslib.as_array(row, shape=(self._width,))
        if self._memory:
            api.llama_memory_clear(self._memory, not np.isfinite(rows).all())  # bytes too: NaN could spread
        return self._scores(rows) if self.num_classes else rows

    def _scores(self, rows: Rows) -> Rows:
        """One number from 0 to 1. A single output is a logit; several are probabilities, the first of "relevant"."""
        if self.num_classes > 1:
            return rows[:, :1]
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and the score 0
            return (1 / (1 + np.exp(-rows))).astype(np.float32)

    def close(self) -> None:
        if self._pointer:
            api.llama_free(self._pointer)
            self._pointer = None


class LlamaEncoder:
    """See `workers.engine.base.Engine` for the contract."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._log = LlamaLog()
        self._model: LlamaModel | None = None
        self._context: EncoderContext | None = None

    def load(self, progress: ProgressCallback) -> Ready:
        return load(self._config, self._log, progress, self._use)

    def _use(self, model: LlamaModel, adapters: LlamaAdapters) -> int:
        config = self._config
        self._model, self._adapters = model, adapters
        context = self._context = EncoderContext(model, config, self._log, adapters)
        if config.model_kind is ModelKind.RERANK and not context.num_classes:
            raise ModelLoadFailed(
                f"{config.model_path.name} has no classifier, so it can't score texts; `kind: embed` in models.yaml "
                "makes it an embedding model."
            )
        self._pairs = model.pair_parts()
        self._loop = EncodeLoop(context, max_tokens=config.context_length, max_inputs=ENCODER_INPUTS)
        return output_growth_bytes(model, config)

    def prepare(self, message: Generate | Encode) -> Encoding:
        kind = self._config.model_kind
        if isinstance(message, Generate):
            raise WrongModelKind(message.request.model, kind)
        request = message.request
        if (request.query is not None) != (kind is ModelKind.RERANK):
            raise WrongModelKind(request.model, kind)
        self._adapters.check(message.adapter)
        inputs = []
        name = "input" if request.query is None else "documents"
        # One after the other: a long query in front of every document would take more memory than there is.
        for index, tokens in enumerate(self._inputs(request)):
            if len(tokens) > self._config.context_length:
                raise InputTooLong(param=f"{name}[{index}]", tokens=len(tokens), limit=self._config.context_length)
            inputs.append(tokens)
        return Encoding(
            key=message.key,
            adapter=message.adapter,
            inputs=tuple(inputs),
            done=message.published_rows,
            dimensions=request.dimensions,
            is_scored=request.query is not None,
        )

    def add(self, work: Encoding) -> None:
        self._loop.add(work)

    def cancel(self, key: int) -> None:
        self._loop.cancel(key)

    def interrupt(self, key: int) -> None:
        """A batch is short: nothing is gained by stopping inside it."""

    def open_slots(self, count: int) -> None:
        """All inputs share one context."""

    def rest(self) -> None:
        """Nothing is kept from one job to the next."""

    def hurry(self) -> None:
        """Nor here."""

    @property
    def has_work(self) -> bool:
        return self._loop.has_work

    def step(self) -> tuple[Output, ...]:
        return self._loop.step()

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
        if self._model is not None:
            self._model.close()

    def _inputs(self, request: EncodingRequest) -> Iterable[tuple[int, ...]]:
        assert self._model is not None, "prepare before load"
        model = self._model
        if request.query is not None:
            return self._pairs_of(model, request.query, request.texts)
        if request.texts:
            return (tuple(model.tokenize(text, add_special=True)) or self._nothing() for text in request.texts)
        size = self._model.vocabulary_size
        for index, tokens in enumerate(request.token_ids):
            if not all(0 <= token < size for token in tokens):
                raise InvalidRequest(
                    f"input[{index}] has token ids that this model lacks; its ids are 0 to {size - 1}.",
                    param=f"input[{index}]",
                )
        return request.token_ids

    def _nothing(self) -> tuple[int, ...]:
        assert self._model is not None
        return tuple(self._model.start_ids())

    def _pairs_of(self, model: LlamaModel, query: str, texts: Items[str]) -> Iterator[tuple[int, ...]]:
        """The form of llama-server (tools/server/server-common.cpp, format_prompt_rerank)."""
        pairs = self._pairs
        if pairs.template is not None:
            template = pairs.template.replace("{query}", query)
            for text in texts:
                yield tuple(model.tokenize(template.replace("{document}", text), add_special=False))
            return
        before = (*pairs.start, *model.tokenize(query, add_special=False, parse_special=False), *pairs.between)
        for text in texts:
            yield (*before, *model.tokenize(text, add_special=False, parse_special=False), *pairs.end)
