"""The cached tokens of a llama.cpp context: cut, copied between slots, saved to ordinary memory and restored.

Every slot is a stream of its own (kv_unified = false). Between streams `llama_memory_seq_cp` copies whole buffers, and
only when the next llama_decode begins (llama_kv_cache::update), in the order of the calls. A saved state holds the used
cells alone and moves at once. So both ways are here, and a slot with a copy to come is not touched by the other way.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as api

from workers.engine.backend import State

_BYTES = ctypes.POINTER(ctypes.c_uint8)


@dataclass(frozen=True, slots=True, eq=False)
class LlamaState:
    """llama.cpp's own serialisation of one slot."""

    data: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


class LlamaMemory:
    def __init__(self, context: Any, model: Any, *, context_length: int, is_on_device: bool) -> None:
        """`is_on_device`: the cache is not in ordinary memory, so states go over a bus and buffer copies don't."""
        self._context = context
        self._memory: Any = api.llama_get_memory(context)
        self._context_length = context_length
        self.cuts_tails = _cuts_tails(model)
        # A saved state leaves out what a sliding window has passed, so that nothing could be cut off its copy.
        self._copies_buffers = is_on_device or not cuts_any_tail(model)
        self._to_be_read: set[int] = set()  # by copies that the next decode begins with
        self._to_be_written: set[int] = set()

    def decode_has_begun(self) -> None:
        """The copies are done."""
        if self._to_be_read:
            self._to_be_read.clear()
            self._to_be_written.clear()

    def length(self, slot: int) -> int:
        return int(api.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def keep_prefix(self, slot: int, length: int) -> int:
        held = self.length(slot)
        if length == held:
            return length
        is_whole = api.llama_memory_seq_pos_min(self._memory, slot) <= 0  # False: restored with a window only
        if 0 < length < held and is_whole and api.llama_memory_seq_rm(self._memory, slot, length, -1):
            return length
        # Recurrent models can't drop a tail; dropping a whole sequence never fails.
        api.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return 0

    def clear(self) -> None:
        api.llama_memory_clear(self._memory, True)
        self._to_be_read.clear()
        self._to_be_written.clear()

    def copy_cost(self, tokens: int) -> int:
        return self._context_length if self._is_buffer_copy(tokens) else 2 * tokens

    def _is_buffer_copy(self, tokens: int) -> bool:
        return self._copies_buffers or 2 * tokens > self._context_length

    def copy(self, source: int, target: int) -> None:
        is_bound = source in self._to_be_written or target in self._to_be_read
        if not is_bound and not self._is_buffer_copy(self.length(source)):
            state = self.save(source)
            if state is not None and self.restore(target, state):
                return
        api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._to_be_read.add(source)
        self._to_be_written.add(target)

    def save(self, slot: int, limit_bytes: int | None = None) -> LlamaState | None:
        if slot in self._to_be_written:
            return None
        size = int(api.llama_state_seq_get_size_ext(self._context, slot, 0))
        if not size or (limit_bytes is not None and size > limit_bytes):
            return None
        data = np.empty(size, dtype=np.uint8)
        written = api.llama_state_seq_get_data_ext(self._context, data.ctypes.data_as(_BYTES), size, slot, 0)
        return LlamaState(data) if written == size else None

    def restore(self, slot: int, state: State) -> bool:
        assert isinstance(state, LlamaState)
        if slot in self._to_be_read or slot in self._to_be_written:
            return False
        data = state.data
        read = api.llama_state_seq_set_data_ext(self._context, data.ctypes.data_as(_BYTES), data.nbytes, slot, 0)
        return bool(read == data.nbytes)


def cuts_any_tail(model: Any) -> bool:
    """Whether a slot can always be cut to a prefix: not once a sliding window has passed its beginning."""
    return _cuts_tails(model) and not api.llama_model_n_swa(model)


def _cuts_tails(model: Any) -> bool:
    return not (api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model))
