"""llama.cpp's own log: kept off the terminal, passed on to ours, and remembered while a model loads.

A load that fails returns a null pointer and says why in the log only; buffer sizes are in the log only, too.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import deque
from typing import Any

from llama_cpp import llama_cpp as api

_WARN, _ERROR, _CONTINUED = 3, 4, 5  # ggml_log_level
_REMEMBERED_LINES = 2000
_BUFFER_SIZE = re.compile(r"(KV|RS|compute|output) buffer size\s*=\s*([0-9.]+) MiB")
_COPIED = re.compile(r"CPU_(?!Mapped)\w+ model buffer size\s*=\s*([0-9.]+) MiB")
_CACHE_SIZE = re.compile(r"(?:kv_cache|memory_recurrent)\w*: size =\s*([0-9.]+) MiB")

# C holds only a bare pointer to the callback, and calls it long after the engine that installed it was collected.
_installed: Any = None


class LlamaLog:
    """Receives llama.cpp's log lines for the rest of this process's life."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED_LINES)
        self._level = 0
        callback = api.llama_log_callback(self._receive)
        api.llama_log_set(callback, ctypes.c_void_p(0))
        global _installed
        _installed = callback

    def _receive(self, level: int, text: bytes, _user_data: object) -> None:
        line = text.decode("utf-8", "replace")
        if level == _CONTINUED:
            level = self._level
        self._level = level
        self._lines.append((level, line))
        if level in (_WARN, _ERROR):
            print(f"llama.cpp: {line.rstrip()}", file=sys.stderr)

    def complaints(self) -> str:
        """What llama.cpp said was wrong, as one line."""
        # Function names at the start of a line mean nothing to the person who reads this.
        errors = [re.sub(r"^\w+: ", "", line).strip() for level, line in self._lines if level == _ERROR]
        return "; ".join(dict.fromkeys(filter(None, errors)))

    def buffer_bytes(self) -> dict[str, int]:
        """What the context said about its buffers, summed over devices: KV (RS: recurrent), compute, output."""
        sizes = dict.fromkeys(("KV", "RS", "compute", "output"), 0)
        for _, line in self._lines:
            for kind, mib in _BUFFER_SIZE.findall(line):
                sizes[kind] += round(float(mib) * 2**20)
        return sizes

    def copied_weight_bytes(self) -> int:
        """Weights in buffers of main memory that are no mapping of the file: repacked ones."""
        return sum(round(float(mib) * 2**20) for _, line in self._lines for mib in _COPIED.findall(line))

    def cache_bytes(self) -> int:
        """What the context said about its KV and recurrent caches, also when it did not allocate them."""
        return sum(round(float(mib) * 2**20) for _, line in self._lines for mib in _CACHE_SIZE.findall(line))

    def forget(self) -> None:
        self._lines.clear()
