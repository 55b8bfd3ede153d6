"""Whether the client of a connection takes what is sent to it.

Once the buffers between it and us are full, a client that reads nothing more would hold its place, and the task that
sends, for ever: TCP asks again and again whether there is room, and never gives up while the client's kernel answers.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from array import array


class Uptake:
    """Of one connection. Its time is the sum of the ticks that were looked at: while our own process stood still, no
    client is to blame."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._num_written = 0
        self._num_taken = 0
        self.stalled_s = 0.0

    def wrote(self, num_bytes: int) -> None:
        self._num_written += num_bytes

    @property
    def num_waiting(self) -> int:
        """Bytes that the kernel has not taken from us."""
        return self._transport.get_write_buffer_size()

    @property
    def num_taken(self) -> int:
        """Bytes of all answers that had arrived when they were last counted."""
        return self._num_taken

    def look(self, tick_s: float) -> None:
        """Called every tick. As long as the kernel takes everything from us, nobody holds us up."""
        waiting = self.num_waiting
        if not waiting:
            self.stalled_s = 0.0
            return
        taken = self._num_written - waiting - self._num_in_kernel()
        self.stalled_s = 0.0 if taken > self._num_taken else self.stalled_s + tick_s
        self._num_taken = taken

    def _num_in_kernel(self) -> int:
        """Bytes that the client has not acknowledged: without them a slow one would look stalled, since the kernel
        wants more from us only when a third of its buffer, which may be megabytes, is free. tcp(7), SIOCOUTQ."""
        if sys.platform != "linux":
            return 0
        unsent = array("i", [0])
        try:
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, unsent)
        except OSError:  # it has just been closed
            return 0
        return unsent[0]
