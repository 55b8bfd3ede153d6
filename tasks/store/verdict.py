"""The store's answer to an attempt that renews its lease or appends to its stream."""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    """The numbers are what the scripts renew.lua and append.lua return."""

    OK = 0
    CANCEL = 1  # still ours, but the job is to be ended
    LOST = 2  # a higher attempt owns the job, or it is over: stop, write nothing
