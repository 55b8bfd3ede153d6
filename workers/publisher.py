"""Publish what a runner has put out, one chunk per flight and call, and act on what the store says of each.

Used by the runner's reader thread alone, so that it needs no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence, Set

from tasks.errors import StoreUnavailable
from tasks.ports import Lost
from tasks.store.token_writer import Chunk
from tasks.store.verdict import Verdict
from workers.clock import Clock
from workers.flight import Ending
from workers.flights import Flights
from workers.token_sink import TokenSink

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0


class Publisher:
    """`patience_s`: for so long the store may take no tokens. `give_up`: once it is set, nothing is tried again."""

    def __init__(
        self, *, sink: TokenSink, flights: Flights, clock: Clock, patience_s: float, give_up: threading.Event
    ) -> None:
        self._sink = sink
        self._flights = flights
        self._clock = clock
        self._patience_s = patience_s
        self._give_up = give_up

    def publish(self, ended: Set[int]) -> None:
        """Blocks while the store is away. `ended`: keys of flights whose last chunk goes out with their end."""
        going = [flight for flight in self._flights.all() if flight.key not in ended]
        chunks = {flight: chunk for flight in going if (chunk := flight.take_chunk())}
        if not chunks:
            return
        try:
            verdicts = self._append(tuple(chunks.values()))
        except StoreUnavailable as error:
            for flight in chunks:
                self._flights.abandon(flight, flight.outcome_of_loss(error))
            return
        for flight, verdict in zip(chunks, verdicts, strict=True):
            if verdict is Verdict.CANCEL:
                self._flights.end(flight, Ending.CANCEL)
            elif verdict is Verdict.LOST:
                self._flights.abandon(flight, Lost())

    def _append(self, chunks: Sequence[Chunk]) -> Sequence[Verdict]:
        """Insist for a while: the tokens exist nowhere else, and the runner waits for us meanwhile."""
        give_up_s = self._clock.monotonic_s() + self._patience_s
        pause_s = FIRST_RETRY_S
        while True:
            try:
                return self._sink.append(chunks)
            except StoreUnavailable:
                if self._give_up.wait(pause_s) or self._clock.monotonic_s() >= give_up_s:
                    raise
                pause_s = min(pause_s * 2, LAST_RETRY_S)
