"""What admission looks at before it lets a job in, sampled: how full the store is, how fast models serve."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis

from tasks.forecast import ServiceTime
from tasks.store import keys
from tasks.store.connection import Client, translated

SAMPLE_S = 1.0


class AdmissionGauges:
    """A value is read at most once a second; several threads at once may read it twice, which does no harm."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._fill: tuple[float, float] = (-SAMPLE_S, 0.0)  # sampled at, value
        self._service: tuple[float, dict[str, ServiceTime]] = (-SAMPLE_S, {})

    def store_fill(self) -> float:
        """Used part of the store's memory, 0 to 1 and beyond; 0 when the store has no bound or tells none."""
        sampled_at, fill = self._fill
        if self._clock() - sampled_at >= SAMPLE_S:
            fill = self._read_fill()
            self._fill = (self._clock(), fill)
        return fill

    def service_times(self) -> dict[str, ServiceTime]:
        """Measured run times by model."""
        sampled_at, times = self._service
        if self._clock() - sampled_at >= SAMPLE_S:
            times = self._read_service()
            self._service = (self._clock(), times)
        return times

    @translated
    def _read_fill(self) -> float:
        try:
            memory = self._client.info("memory")
        except redis.exceptions.ResponseError:  # not allowed, or not known to this server
            return 0.0
        limit = int(memory.get("maxmemory", 0))
        return int(memory["used_memory"]) / limit if limit else 0.0

    @translated
    def _read_service(self) -> dict[str, ServiceTime]:
        return {model.decode(): decode_service(value) for model, value in self._client.hgetall(keys.SERVICE).items()}


def decode_service(value: bytes) -> ServiceTime:
    mean_ms, samples, measured_ms = value.split()
    return ServiceTime(mean_ms=float(mean_ms), samples=int(samples), measured_ms=int(measured_ms))
