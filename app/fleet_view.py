"""The fleet as requests see it: one read of the store serves all requests of a quarter of a second."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from anyio import to_thread

from app.backend import FleetState, QuarantineWard
from tasks.catalog import Catalog
from tasks.errors import KeepwarmError
from tasks.fleet import Fleet, ModelOffer, QueueReport
from tasks.quarantine import Quarantine

MAX_STALE_S = 2.0  # of the catalogue that a request's model is looked up in


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    fleet: Fleet
    queues: tuple[QueueReport, ...]
    catalog: Catalog  # also models whose workers are away
    quarantined: Mapping[str, Quarantine] = field(default_factory=dict)  # models by id


class FleetView:
    def __init__(
        self,
        store: FleetState,
        ward: QuarantineWard,
        *,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ward = ward
        self._max_age_s = max_age_s
        self._clock = clock
        self._reading = asyncio.Lock()  # single-flight
        self._snapshot: FleetSnapshot | None = None
        self._read_at = 0.0
        self._renewal: asyncio.Task[None] | None = None

    async def snapshot(self) -> FleetSnapshot:
        """At most `max_age_s` old. Raises StoreUnavailable."""
        if (fresh := self._fresh()) is not None:
            return fresh
        async with self._reading:
            if (fresh := self._fresh()) is not None:
                return fresh
            self._snapshot = await to_thread.run_sync(self._read)
            self._read_at = self._clock()
            return self._snapshot

    async def resolve(self, name: str) -> ModelOffer:
        """The model that a client means. Raises UnknownModel, StoreUnavailable.

        No request waits for the store to hear again what was known a moment ago: a catalogue up to MAX_STALE_S old
        decides, and is renewed behind it. Only a name that it lacks is looked up afresh."""
        snapshot, age_s = self._snapshot, self._clock() - self._read_at
        if snapshot is None or age_s >= MAX_STALE_S or name not in snapshot.catalog:
            return (await self.snapshot()).catalog.resolve(name)
        if age_s >= self._max_age_s and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self._renew(), name="fleet-view")
        return snapshot.catalog.resolve(name)

    async def _renew(self) -> None:
        with contextlib.suppress(KeepwarmError):  # the next request that needs the store says so
            await self.snapshot()

    async def store_now_ms(self) -> int:
        """The store's time, which deadlines are measured by."""
        snapshot = await self.snapshot()
        return snapshot.fleet.now_ms + int((self._clock() - self._read_at) * 1000)

    def _fresh(self) -> FleetSnapshot | None:
        if self._snapshot is not None and self._clock() - self._read_at < self._max_age_s:
            return self._snapshot
        return None

    def _read(self) -> FleetSnapshot:
        fleet = self._store.fleet()
        offers = {offer.id: offer for offer in self._store.known_offers()} | fleet.offers()
        return FleetSnapshot(
            fleet=fleet,
            queues=self._store.queues(),
            catalog=Catalog(offers.values()),
            quarantined={entry.suspect.model: entry for entry in self._ward.all() if entry.suspect.kind == "model"},
        )
