"""The batch that llama_decode reads, as numpy arrays that are filled in place: no allocation per step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Items
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as api

from workers.engine.backend import Slice


class LlamaBatch:
    """A llama_batch of fixed capacity. The arrays belong to numpy, so llama_batch_init and _free stay out of it."""

    def __init__(self, capacity: int) -> None:
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._positions = np.zeros(capacity, dtype=np.int32)
        self._slots = np.zeros(capacity, dtype=np.int32)
        self._wanted = np.zeros(capacity, dtype=np.int8)
        ones = np.ones(capacity, dtype=np.int32)
        # Every token is in exactly one sequence: pointer i leads to element i of the flat array of slots.
        addresses = self._slots.ctypes.data + np.arange(capacity, dtype=np.uintp) * self._slots.itemsize
        self._keep_alive = (ones, addresses)
        self.struct = api.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(ones, ctypes.c_int32),
            seq_id=ctypes.cast(addresses.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def fill(self, slices: Items[Slice]) -> int:
        """Put the slices in, one after the other; the number of rows of logits to expect."""
        slots: Items[int]
        positions: Items[int]
        wanted: Items[int]
        slots, positions, parts, wanted = zip(*slices, strict=True)
        rows = sum(part.outputs for part in slices)
        tokens = [*chain.from_iterable(parts)]
        if len(tokens) > len(slices):
            slots, positions, wanted = _spread(slices)
        total = len(tokens)
        self._tokens[:total] = tokens
        self._positions[:total] = positions
        self._slots[:total] = slots
        self._wanted[:total] = wanted
        self.struct.n_tokens = total
        return rows

    def fill_whole(self, inputs: Items[Items[int]]) -> None:
        """One sequence per input, with an output of every token: pooling needs them all."""
        self.fill([Slice(slot, 0, list(tokens), True) for slot, tokens in enumerate(inputs)])
        self._wanted[: self.struct.n_tokens] = 1


def _spread(slices: Items[Slice]) -> tuple[list[int], list[int], list[int]]:
    """Slot, position and wish for logits of every token."""
    slots: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for slot, start, part, outputs in slices:
        count = len(part)
        slots += [slot] * count
        positions += range(start, start + count)
        wanted += [0] * (count - outputs) + [1] * outputs
    return slots, positions, wanted


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
