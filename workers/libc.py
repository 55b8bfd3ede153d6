"""The C library, for calls that Python doesn't offer. POSIX."""

from __future__ import annotations

import ctypes
import functools


@functools.cache  # each handle makes a class of its own, which only a collection of garbage ends
def libc() -> ctypes.CDLL:
    """Failed calls leave their reason in `ctypes.get_errno`."""
    return ctypes.CDLL(None, use_errno=True)
