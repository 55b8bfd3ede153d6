"""LoRA adapters over one loaded model, and which of them a context computes with.

llama.cpp knows adapters per context, not per sequence: so a batch has one, and another one is set between two batches.
That is not free: the next decode lays out its graphs and buffers anew (`llama_context::sched_reserve`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llama_cpp import llama_cpp as api

from tasks.errors import ModelLoadFailed
from workers.engine.base import EngineAdapter, EngineFailed
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_model import LlamaModel, check_file


@dataclass(slots=True)
class LlamaAdapters:
    """By id; llama.cpp frees them with their model."""

    loaded: dict[str, tuple[Any, float]] = field(default_factory=dict)  # pointer and scale
    broken: dict[str, str] = field(default_factory=dict)  # the reason
    num_bytes: int = 0  # of the files that were loaded, nearly all of it tensors

    def check(self, adapter: str) -> None:
        """Before work under this adapter is taken. Raises ModelLoadFailed."""
        if adapter and adapter not in self.loaded:
            raise ModelLoadFailed(f"The runner has no LoRA adapter '{adapter}'; its base was loaded without it.")


NO_ADAPTERS = LlamaAdapters()


def load_adapters(model: LlamaModel, adapters: Iterable[EngineAdapter], log: LlamaLog) -> LlamaAdapters:
    """One that can't be loaded takes neither the model nor the others down."""
    found = LlamaAdapters()
    for adapter in adapters:
        try:
            found.loaded[adapter.id] = (_load(model, adapter, log), adapter.scale)
            found.num_bytes += adapter.path.stat().st_size
        except (ModelLoadFailed, OSError) as error:
            found.broken[adapter.id] = str(error)
    return found


def _load(model: LlamaModel, adapter: EngineAdapter, log: LlamaLog) -> Any:
    check_file(adapter.path)
    before = log.complaints()
    pointer = api.llama_adapter_lora_init(model.pointer, str(adapter.path).encode())
    if not pointer:
        reason = log.complaints().removeprefix(before).lstrip("; ") or "it gave no reason"
        raise ModelLoadFailed(f"llama.cpp can't load the LoRA adapter {adapter.path.name}: {reason}.")
    return pointer


class ActiveAdapter:
    """What one context computes with; none at first."""

    def __init__(self, context: Any, adapters: LlamaAdapters) -> None:
        self._context = context
        self._adapters = adapters.loaded
        self._active = ""

    def use(self, adapter: str) -> None:
        """From the next decode on; "" is the model itself. Raises EngineFailed."""
        if adapter == self._active:
            return
        if adapter:
            pointer, scale = self._adapters[adapter]
            pointers = (api.llama_adapter_lora_p_ctypes * 1)(pointer)
            code = api.llama_set_adapters_lora(self._context, pointers, 1, (ctypes.c_float * 1)(scale))
        else:
            code = api.llama_set_adapters_lora(self._context, None, 0, None)
        if code:
            raise EngineFailed(f"llama_set_adapters_lora returned {code}.")
        self._active = adapter
