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
from workers.engine.llama_model import LlamaModel, check_file, load_model
from workers.engine.turnstile import loading
from workers.engine.untouched import zeros_given_back
from workers.messages import READ_SHARE, Ready
from workers.page_cache import is_cached, read_through

Use = Callable[[LlamaModel, LlamaAdapters], int]


def load(config: EngineConfig, log: LlamaLog, progress: ProgressCallback, use: Use) -> Ready:
    """`use` gets the model and its adapters, to own them and to build its context on them; it returns the bytes that
    its work will take beside llama.cpp's buffers. An adapter that can't be loaded is left out, and Ready says why.
    Raises ModelLoadFailed, and what `use` raises.

    On a CPU, where steps of others leave a load a core, the file is read from the disk before it takes that core."""
    started = time.monotonic()
    if config.kv_type not in KV_TYPES:
        raise ModelLoadFailed(f"kv_type {config.kv_type!r} is not one of {', '.join(KV_TYPES)}.")
    api.llama_backend_init()
    shares_cores = config.gpu_layers == 0
    rest = _read_from_disk(config, progress) if shares_cores else progress
    with loading(config.turns_path if shares_cores else None):
        model = load_model(config, log, progress=rest)
        adapters = load_adapters(model, config.adapters, log)
        with zeros_given_back(shares_cores) as untouched:
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
        untouched=tuple(untouched),
        adapter_bytes=adapters.num_bytes,
        broken_adapters=adapters.broken,
    )


def _read_from_disk(config: EngineConfig, progress: ProgressCallback) -> ProgressCallback:
    """Bring the file into the page cache, unless most of it is there; the callback for the rest of the load. Where
    nobody can tell, it is read: that costs next to nothing if it is there. A file that can't be read is the load's to
    complain about."""
    check_file(config.model_path)

    def goes_on(share: float) -> bool:
        progress(READ_SHARE * share)
        return True

    try:
        if is_cached(config.model_path):
            return progress
        read_through(config.model_path, goes_on)
    except OSError:
        return progress
    return lambda fraction: progress(READ_SHARE + (1 - READ_SHARE) * fraction)
