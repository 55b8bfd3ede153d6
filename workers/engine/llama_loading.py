"""Load a model with llama.cpp and take stock of what it took: the same for every kind of engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from llama_cpp import llama_cpp as api

from tasks.errors import ModelLoadFailed
from workers.engine.base import EngineConfig, ProgressCallback
from workers.engine.kv_types import KV_TYPES
from workers.engine.llama_adapters import LlamaAdapters, load_adapters
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_model import LlamaModel, load_model
from workers.messages import Ready

Use = Callable[[LlamaModel, LlamaAdapters], int]


def load(config: EngineConfig, log: LlamaLog, progress: ProgressCallback, use: Use) -> Ready:
    """`use` gets the model and its adapters, to own them and to build its context on them; it returns the bytes that
    its work will take beside llama.cpp's buffers. An adapter that can't be loaded is left out, and Ready says why.
    Raises ModelLoadFailed, and what `use` raises."""
    started = time.monotonic()
    if config.kv_type not in KV_TYPES:
        raise ModelLoadFailed(f"kv_type {config.kv_type!r} is not one of {', '.join(KV_TYPES)}.")
    api.llama_backend_init()
    model = load_model(config, log, progress=progress)
    adapters = load_adapters(model, config.adapters, log)
    other_bytes = use(model, adapters)
    buffers, copied = log.buffer_bytes(), log.copied_weight_bytes()
    log.forget()
    return Ready(
        context_length=config.context_length,
        slots=config.slots,
        load_ms=round((time.monotonic() - started) * 1e3),
        weight_bytes=model.weight_bytes,
        kv_bytes=buffers["KV"] + buffers["RS"],
        compute_bytes=buffers["compute"] + buffers["output"] + other_bytes,
        copied_weight_bytes=copied,
        adapter_bytes=adapters.num_bytes,
        broken_adapters=adapters.broken,
    )
