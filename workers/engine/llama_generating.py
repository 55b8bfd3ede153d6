"""The context of a model that generates text: batches in, logits out, one KV stream per slot.

`llama_decode` releases the GIL, so the runner's other threads go on while a batch is computed.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence as Items
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api

from workers.engine.backend import Interrupted, NoRoom, Slice
from workers.engine.base import EngineConfig, EngineFailed
from workers.engine.llama_adapters import NO_ADAPTERS, ActiveAdapter, LlamaAdapters
from workers.engine.llama_batch import LlamaBatch
from workers.engine.llama_context import ContextThreads, context_params, new_context
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_memory import LlamaMemory, cuts_any_tail
from workers.engine.llama_model import LlamaModel
from workers.engine.sampling import Floats
from workers.engine.thread_pace import ThreadPace
from workers.engine.turnstile import turnstile_for
from workers.engine.untouched import give_back_zeros
from workers.engine.vocabulary import Vocabulary
from workers.libc import libc
from workers.messages import AddressRange

_LARGEST_UBATCH = 512  # tokens computed at once: the compute buffer grows with it


def batch_capacity(config: EngineConfig) -> int:
    """Tokens of the largest step: every slot has one, and the whole chunk of a prompt, or drafts, come on top."""
    return max(config.prefill_chunk, config.draft_tokens) + config.slots


def max_drafted(model: LlamaModel, config: EngineConfig) -> int:
    """Tokens per step; none where a cache loses more than the newest tokens when these are cut off.

    And none unasked where they could change the text: on CPUs, products with weights of most types round one row
    otherwise than several, so that temperature 0 would not repeat itself; see `workers.gguf_types.STEADY`."""
    is_wanted = config.draft is not None or config.gpu_layers != 0 or config.has_steady_weights
    return config.draft_tokens if is_wanted and cuts_any_tail(model.pointer) else 0


def drafted_bytes(model: LlamaModel, config: EngineConfig) -> int:
    """What the output buffer grows by with the first drafts: llama.cpp begins with a row of logits per slot."""
    return max_drafted(model, config) * model.vocabulary_size * 4


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

    def __init__(
        self,
        model: LlamaModel,
        config: EngineConfig,
        log: LlamaLog,
        adapters: LlamaAdapters = NO_ADAPTERS,
        *,
        turn: AbstractContextManager[int] | None = None,
    ) -> None:
        """`turn` is taken for each decode; None: the turnstile of the config.

        Raises ModelLoadFailed when the context can't be created, mostly for want of memory."""
        self._pointer: Any = generating_context(model, config, log)
        self._adapter = ActiveAdapter(self._pointer, adapters)
        self.untouched: tuple[AddressRange, ...] = ()  # where it takes memory only when it is written to
        self._model = model
        self._vocabulary_size = model.vocabulary_size
        self.turn = turnstile_for(config) if turn is None else turn
        self._threads = ContextThreads(self._pointer, config.threads)
        self._pace = ThreadPace(config.threads, time.monotonic)
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
        self._asks = ctypes.cast(libc().strlen, api.ggml_abort_callback)
        api.llama_set_abort_callback(self._pointer, self._asks, ctypes.cast(self._wish_to_stop, ctypes.c_void_p))

    def clear(self) -> None:
        """Also of memory: llama.cpp zeroes all of it, that of closed slots included."""
        self._memory.clear()
        for start, end in self.untouched:
            give_back_zeros(start, end)

    @property
    def vocabulary(self) -> Vocabulary:
        return self._model.vocabulary

    def decode(self, batch: Items[Slice], adapter: str = "") -> Floats:
        outputs = self._batch.fill(batch)
        self._adapter.use(adapter)
        with self.turn as granted:
            code = self._compute(granted)
        self._memory.decode_has_begun()
        self._wish_to_stop[0] = b"\0"
        if code == 1:  # the state was restored
            raise NoRoom
        if code == 2:  # micro-batches that were complete stay in the cache
            raise Interrupted
        if code != 0:
            raise EngineFailed(f"llama_decode returned {code}.")
        if not outputs:
            return np.empty((0, self._vocabulary_size), dtype=np.float32)
        return self._rows_at(api.llama_get_logits(self._pointer), outputs)

    def _compute(self, granted: int) -> int:
        """llama_decode, with the number of threads that is best right now."""
        tokens = int(self._batch.struct.n_tokens)
        threads = self._pace.threads(tokens, granted)
        self._threads.use(threads)
        started_s = time.monotonic()
        code = int(api.llama_decode(self._pointer, self._batch.struct))
        if code == 0:
            self._pace.measured(tokens, threads, granted, time.monotonic() - started_s)
        return code

    def _rows_at(self, pointer: Any, count: int) -> Floats:
        """llama.cpp's buffer stays where it is until more rows are wanted, so its view is kept."""
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_address or count > len(self._logits):
            self._logits = np.ctypeslib.as_array(pointer, shape=(count, self._vocabulary_size))
            self._logits_address = address
        return self._logits[:count]

    def interrupt(self) -> None:
        """Takes effect on the CPU; other devices finish their batch."""
        self._wish_to_stop[0] = b"x"

    def close(self) -> None:
        if self._pointer:
            api.llama_free(self._pointer)
            self._pointer = None
