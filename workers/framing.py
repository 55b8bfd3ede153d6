"""Length-prefixed msgpack frames over a stream socket, for both directions between worker and runner.

A frame is a 4-byte big-endian length and one msgpack map; see `workers.messages` for the maps.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from workers.messages import FromRunner, ToRunner

M = TypeVar("M", bound=msgspec.Struct)

HEADER_BYTES = 4
MAX_FRAME_BYTES = 256 * 1024 * 1024  # a header beyond this is garbage, not a message
_READ_BYTES = 256 * 1024

_encoder = msgspec.msgpack.Encoder()


class BrokenFrame(ValueError):
    """The other side sent bytes that are no message: the connection can't be used any more."""


def encode_frame(message: msgspec.Struct) -> bytes:
    """One message as a frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameSplitter(Generic[M]):
    """Bytes in any portions → messages. Keeps the incomplete rest for the next portion."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decode = decoder.decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """All messages that are complete now. Raises BrokenFrame."""
        self._buffer += data
        messages, at = [], 0
        while len(self._buffer) - at >= HEADER_BYTES:
            size = int.from_bytes(self._buffer[at : at + HEADER_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                raise BrokenFrame(f"a frame of {size} bytes")
            start = at + HEADER_BYTES
            if len(self._buffer) - start < size:
                break
            at = start + size
            try:
                messages.append(self._decode(self._buffer[start:at]))
            except msgspec.DecodeError as error:
                raise BrokenFrame(str(error)) from error
        del self._buffer[:at]
        return messages


class FrameDecoder(FrameSplitter[FromRunner]):
    """The worker's decoder."""

    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.Decoder(FromRunner))


class RequestDecoder(FrameSplitter[ToRunner]):
    """The runner's decoder."""

    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.Decoder(ToRunner))


class FrameReader(Generic[M]):
    """Blocking reader that hands over everything that has arrived, so that the caller can coalesce it."""

    def __init__(self, connection: socket.socket, decoder: FrameSplitter[M]) -> None:
        self._connection = connection
        self._decoder = decoder

    def read_available(self) -> list[M]:
        """Wait for at least one message, return all complete ones in order; [] when the other side is gone.

        Raises BrokenFrame, and TimeoutError if the socket has a timeout."""
        while True:
            try:
                data = self._connection.recv(_READ_BYTES)
            except (ConnectionResetError, BrokenPipeError):
                return []
            if not data:
                return []
            messages = self._decoder.feed(data)
            if messages:
                return messages

    def __iter__(self) -> Iterator[M]:
        while messages := self.read_available():
            yield from messages


class FrameWriter:
    """Sends whole frames from any thread. Blocks while the other side doesn't read: that is the back-pressure."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: msgspec.Struct) -> None:
        """Raises OSError when the other side is gone."""
        frame = encode_frame(message)
        with self._lock:
            self._connection.sendall(frame)
