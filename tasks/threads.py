"""How the threads of a process share its interpreter."""

from __future__ import annotations

import sys

SWITCH_INTERVAL_S = 0.0001


def hand_over_soon() -> None:
    """Let a thread that wakes up have the interpreter after this long, not after Python's 5 ms.

    A request passes through several threads of a front and of a worker; each waits while another one computes."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
