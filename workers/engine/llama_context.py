"""What the contexts of generating and of encoding models have in common: how they compute, and how they fail."""

from __future__ import annotations

from typing import Any

from llama_cpp import llama_cpp as api

from tasks.errors import ModelLoadFailed
from workers.engine.base import EngineConfig
from workers.engine.kv_types import GGML_TYPES, keys_and_values
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_model import LlamaModel


def context_params(config: EngineConfig) -> Any:
    """llama_context_params with threads, attention, KV type and device; lengths and batches are the caller's."""
    params = api.llama_context_default_params()
    params.n_threads = params.n_threads_batch = config.threads
    params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_AUTO
    params.type_k, params.type_v = (GGML_TYPES[name] for name in keys_and_values(config.kv_type))
    params.offload_kqv = params.op_offload = config.gpu_layers != 0
    params.no_perf = True
    return params


def new_context(model: LlamaModel, params: Any, log: LlamaLog, *, of: str) -> Any:
    """A llama_context without an adapter. Raises ModelLoadFailed, mostly for want of memory; `of` says of what
    the context was to be."""
    pointer = api.llama_init_from_model(model.pointer, params)
    if not pointer:
        raise ModelLoadFailed(f"llama.cpp can't create a context {of}: {log.complaints() or 'it gave no reason'}.")
    return pointer


class ContextThreads:
    """The threads that a context computes with, set where they change: results are the same with any number."""

    def __init__(self, pointer: Any, most: int) -> None:
        """`most`: what the context was made with."""
        self._pointer = pointer
        self._most = self._threads = most

    def use(self, granted: int) -> None:
        threads = min(granted, self._most)
        if threads != self._threads:
            api.llama_set_n_threads(self._pointer, threads, threads)
            self._threads = threads
