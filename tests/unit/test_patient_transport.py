"""What is held back for a moment goes to a connection that is still there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from app.connections import _PatientTransport
from app.uptake import Uptake


class Transport:
    """Once it is gone, writing raises, as uvloop's does."""

    def __init__(self) -> None:
        self.is_gone = False
        self.sent: list[bytes] = []

    def is_closing(self) -> bool:
        return self.is_gone

    def write(self, data: bytes) -> None:
        if self.is_gone:
            raise RuntimeError("the handler is closed")
        self.sent.append(data)


async def test_head_whose_client_leaves_before_the_first_words_is_dropped_without_an_error():
    transport: Any = Transport()
    patient = _PatientTransport(SimpleNamespace(uptake=Uptake(transport)), transport)  # type: ignore[arg-type]
    patient.write(b"HTTP/1.1 200 OK\r\n\r\n")
    transport.is_gone = True
    patient.flush()
    transport.is_gone = False
    patient.flush()
    assert transport.sent == []
