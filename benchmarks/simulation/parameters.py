"""Everything that the simulation assumes about machines and models. Calibrate these to a real run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of worker. Bytes, bytes/s and ms.

    A decode step of a model reads its weights once (`bytes / decode_bytes_per_s`) and costs `sequence_ms` more for each
    of its sequences; models on one device take turns, so a step of everybody is the sum. Prefill goes along in chunks.
    A load waits for the loads before it on the same worker, then reads its bytes from the disk or the page cache of
    its host, then initialises."""

    budget_bytes: int = 20 * GB
    decode_bytes_per_s: float = 300e9
    sequence_ms: float = 4.0
    prefill_tokens_per_step: float = 256.0
    disk_bytes_per_s: float = 2e9
    cache_bytes_per_s: float = 12e9
    page_cache_bytes: int = 64 * GB  # per host
    init_ms: float = 500.0
    stop_ms: float = 100.0  # from the last sequence to free memory
    drain_ms: float = 2_000.0  # then the rest is parked


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Times that were measured on a real machine win over those that follow from the bytes."""

    id: str
    bytes: int
    slots: int = 4
    load_ms: float | None = None
    step_ms: float | None = None  # of a decode step, beside `Hardware.sequence_ms`


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A fleet: workers (each a host of its own) and the models that all of them offer."""

    models: tuple[Model, ...]
    num_workers: int = 3
    hardware: Hardware = field(default_factory=Hardware)
    tick_ms: int = 500

    def capacity_per_s(self, mean_tokens: float) -> float:
        """Jobs per second that the devices could serve with half of the slots of a model busy at a time and no loads:
        load 1. Full slots would serve more, but the jobs of many models don't fill them."""
        sizes = [model.bytes for model in self.models]
        weights_ms = float(np.mean(sizes)) / self.hardware.decode_bytes_per_s * 1000
        busy = self.models[0].slots / 2
        tokens_per_s = busy / (weights_ms + self.hardware.sequence_ms * busy) * 1000
        return self.num_workers * tokens_per_s / mean_tokens

    def load_ms(self, model: Model, *, is_cached: bool) -> float:
        if model.load_ms is not None:
            return model.load_ms
        hardware = self.hardware
        rate = hardware.cache_bytes_per_s if is_cached else hardware.disk_bytes_per_s
        return hardware.init_ms + model.bytes / rate * 1000


# 16 models of 127 GB in all: what a team keeps around, from a small helper to the largest that fits a 20 GB device.
SIZES_GB = (4.5, 8.5, 5.0, 14.0, 4.7, 8.0, 3.2, 16.0, 2.0, 9.0, 7.6, 12.0, 4.9, 10.0, 8.6, 9.0)


def zoo(count: int, slots: int = 4) -> tuple[Model, ...]:
    """So many models; sizes repeat. The order is that of popularity, and sizes have nothing to do with it."""
    return tuple(
        Model(id=f"m{number:04d}", bytes=round(SIZES_GB[number % len(SIZES_GB)] * GB), slots=slots)
        for number in range(count)
    )
