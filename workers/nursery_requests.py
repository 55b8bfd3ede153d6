"""The wire between a worker and its nursery: a byte with a descriptor asks for a runner, an int answers.

The answer is the runner's pid, or -errno. Both are on one machine: a native int has the same bytes for both.
"""

from __future__ import annotations

import errno
import socket
import struct

EXIT_UNFIT = 5  # of a nursery that must not fork
_REQUEST = b"\0"
_ANSWER = struct.Struct("i")
ANSWER_BYTES = _ANSWER.size


def request(requests: socket.socket, connection: socket.socket) -> int:
    """The pid of a new runner that has `connection`, or -errno. Raises OSError, and EOFError when the nursery dies."""
    socket.send_fds(requests, [_REQUEST], [connection.fileno()])
    return decode_answer(requests.recv(ANSWER_BYTES, socket.MSG_WAITALL))


def receive_request(requests: socket.socket) -> socket.socket:
    """The runner's end of a socket pair. Raises EOFError when the worker has gone."""
    received, descriptors, _, _ = socket.recv_fds(requests, len(_REQUEST), 1)
    if not received:
        raise EOFError("the worker has gone")
    connection = socket.socket(fileno=descriptors[0])
    connection.set_inheritable(False)
    return connection


def encode_answer(answer: int | OSError) -> bytes:
    return _ANSWER.pack(-(answer.errno or errno.EIO) if isinstance(answer, OSError) else answer)


def decode_answer(data: bytes) -> int:
    """Raises EOFError when the other side died before it had answered."""
    if len(data) < ANSWER_BYTES:
        raise EOFError("it has died")
    return int(_ANSWER.unpack(data)[0])
