"""The engine on llama.cpp: one model, one context, one KV stream per slot.

`llama_decode` releases the GIL, so the runner's other threads go on while a batch is computed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence as Items
from typing import Any

import numpy as np

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # before the library loads: it would run gdb on an abort

from llama_cpp import llama_cpp as api

from tasks.generation import GenerationRequest
from workers.engine.backend import Interrupted, NoRoom, Slice
from workers.engine.base import EngineConfig, EngineFailed, ProgressCallback
from workers.engine.chat_template import ChatTemplate
from workers.engine.grammars import Grammars
from workers.engine.llama_batch import LlamaBatch
from workers.engine.llama_context import context_params, new_context
from workers.engine.llama_loading import load
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_memory import LlamaMemory, cuts_any_tail
from workers.engine.llama_model import LlamaModel
from workers.engine.looped import LoopedEngine, only_generate
from workers.engine.sampling import Floats
from workers.engine.sequence import Sequence
from workers.engine.step_loop import StepLoop
from workers.engine.turnstile import turnstile_for
from workers.engine.vocabulary import Vocabulary
from workers.messages import Encode, Generate, Ready

_LARGEST_UBATCH = 512  # tokens computed at once: the compute buffer grows with it


def batch_capacity(config: EngineConfig) -> int:
    """Tokens of the largest step: every slot has one, and the whole chunk of a prompt, or drafts, come on top."""
    return max(config.prefill_chunk, config.draft_tokens) + config.slots


def max_drafted(model: LlamaModel, config: EngineConfig) -> int:
    """Tokens per step; none where a cache loses more than the newest tokens when these are cut off."""
    return config.draft_tokens if cuts_any_tail(model.pointer) else 0


def drafted_bytes(model: LlamaModel, config: EngineConfig) -> int:
    """What the output buffer grows by with the first drafts: llama.cpp begins with a row of logits per slot."""
    return max_drafted(model, config) * len(model.vocabulary) * 4


def generating_context(model: LlamaModel, config: EngineConfig, log: LlamaLog) -> Any:
    """A llama_context for `config.slots` sequences. Raises ModelLoadFailed, mostly for want of memory."""
    capacity = batch_capacity(config)
    params = context_params(config)
    params.n_ctx = config.context_length * config.slots
    params.n_seq_max = config.slots
    params.kv_unified = False  # each slot has its own stream: a guaranteed context, no search for room
    params.n_batch = capacity
    params.n_ubatch = min(capacity, _LARGEST_UBATCH)
    params.n_outputs_max = config.slots + max_drafted(model, config)
    return new_context(model, params, log, of=f"of {config.slots} × {config.context_length} tokens")


class LlamaContext:
    """A Backend: the KV cache and the compute buffers of one model."""

    def __init__(self, model: LlamaModel, config: EngineConfig, log: LlamaLog) -> None:
        """Raises ModelLoadFailed when the context can't be created, mostly for want of memory."""
        self._pointer: Any = generating_context(model, config, log)
        self._turn = turnstile_for(config)
        self.vocabulary: Vocabulary = model.vocabulary
        self._memory = LlamaMemory(
            self._pointer,
            model.pointer,
            context_length=config.context_length,
            is_on_device=config.gpu_layers != 0,
        )
        self.cuts_tails = self._memory.cuts_tails
        self.max_drafted = max_drafted(model, config)
        self.length = self._memory.length
        self.keep_prefix = self._memory.keep_prefix
        self.copy = self._memory.copy
        self.copy_cost = self._memory.copy_cost
        self.save = self._memory.save
        self.restore = self._memory.restore
        self._batch = LlamaBatch(batch_capacity(config))
        self._logits: Floats = np.empty((0, 0), dtype=np.float32)
        self._logits_address = 0
        # ggml asks `bool abort(void *data)` before every node of the graph. A Python function there would need the GIL
        # hundreds of times a step; strlen(data) answers the same question from the string: empty, or not.
        self._wish_to_stop = ctypes.create_string_buffer(2)
        self._asks = ctypes.cast(ctypes.CDLL(None).strlen, api.ggml_abort_callback)
        api.llama_set_abort_callback(self._pointer, self._asks, ctypes.cast(self._wish_to_stop, ctypes.c_void_p))

    def decode(self, batch: Items[Slice]) -> Floats:
        outputs = self._batch.fill(batch)
        with self._turn:
            code = api.llama_decode(self._pointer, self._batch.struct)
        self._memory.decode_has_begun()
        self._wish_to_stop[0] = b"\0"
        if code == 1:  # the state was restored
            raise NoRoom
        if code == 2:  # micro-batches that were complete stay in the cache
            raise Interrupted
        if code != 0:
            raise EngineFailed(f"llama_decode returned {code}.")
        if not outputs:
            return np.empty((0, len(self.vocabulary)), dtype=np.float32)
        return self._rows_at(api.llama_get_logits(self._pointer), outputs)

    def _rows_at(self, pointer: Any, count: int) -> Floats:
        """llama.cpp's buffer stays where it is until more rows are wanted, so its view is kept."""
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_address or count > len(self._logits):
            self._logits = np.ctypeslib.as_array(pointer, shape=(count, len(self.vocabulary)))
            self._logits_address = address
        return self._logits[:count]

    def interrupt(self) -> None:
        """Takes effect on the CPU; other devices finish their batch."""
        self._wish_to_stop[0] = b"x"

    def close(self) -> None:
        if self._pointer:
            api.llama_free(self._pointer)
            self._pointer = None


class LlamaEngine(LoopedEngine):
    """See `workers.engine.base.Engine` for the contract."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._log = LlamaLog()
        self._model: LlamaModel | None = None
        self._context: LlamaContext | None = None

    def load(self, progress: ProgressCallback) -> Ready:
        return load(self._config, self._log, progress, self._use)

    def _use(self, model: LlamaModel) -> int:
        config = self._config
        self._model = model
        context = LlamaContext(model, config, self._log)
        self._context = context
        self._template = ChatTemplate(
            model.chat_template, bos_token=model.vocabulary.bos_text, eos_token=model.vocabulary.eos_text
        )
        self._grammars = Grammars(model.vocabulary)
        self._loop = StepLoop(
            context,
            slots=config.slots,
            context_length=config.context_length,
            prefill_chunk=config.prefill_chunk,
            parked_bytes=config.parked_bytes,
        )
        return drafted_bytes(model, config)

    def prepare(self, message: Generate | Encode) -> Sequence:
        message = only_generate(message)
        constraint = self._grammars.constraint(message.request, self._template.tool_format)
        return self._loop.sequence(message, self._prompt_ids(message.request), constraint)

    def _prompt_ids(self, request: GenerationRequest) -> list[int]:
        """Tokenised as llama-server does: control tokens in the text count as such, BOS comes once."""
        assert self._model is not None, "prepare before load"
        bos = self._model.vocabulary.bos_text
        text = request.prompt or "" if request.messages is None else self._template.render(request)
        has_bos = request.messages is not None and bool(bos) and text.startswith(bos)
        ids = self._model.tokenize(text, add_special=not has_bos)
        # An empty prompt in a model without BOS: something has to be decoded to get logits.
        return ids or self._model.start_ids()

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
        if self._model is not None:
            self._model.close()
