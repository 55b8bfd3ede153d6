"""What a model costs on this worker: bytes and load time as measured before, else as estimated. No pool, no runner."""

from __future__ import annotations

from collections.abc import Iterable

from workers.devices import Device
from workers.estimate import MemoryNeed, estimate_load_ms, need_of_measured
from workers.measurements import Measurement, MeasurementKey, Measurements
from workers.model_files import ModelFile
from workers.needs import Needs


class ModelCosts:
    """Thread-safe. `parked_memory`: what a runner may park states in, as in `ModelFile.parked_bytes`."""

    def __init__(self, *, device: Device, measurements: Measurements, needs: Needs, parked_memory: int | None) -> None:
        self._device = device
        self._measurements = measurements
        self._needs = needs
        self._parked_memory = parked_memory

    def keep_only(self, models: Iterable[ModelFile]) -> None:
        """Forget what was estimated for others."""
        self._needs.keep_only(models)

    def hurry(self, model: ModelFile) -> None:
        """An estimate stands in the way of a load: get a better one."""
        if self._measured(model) is None:
            self._needs.hurry(model)

    def need(self, model: ModelFile, *, asks: bool = True) -> MemoryNeed:
        """`asks`: as of `Needs.need`."""
        measured = self._measured(model)
        if measured is not None:
            return need_of_measured(measured.bytes, self.parked_bytes(model))
        return self._needs.need(model, self.parked_bytes(model), asks=asks)

    def load_ms(self, model: ModelFile) -> int:
        measured = self._measured(model)
        return measured.load_ms if measured and measured.load_ms else estimate_load_ms(model.shape.weight_bytes)

    def estimate_error(self, model: ModelFile) -> float | None:
        """As in `Measurement.estimate_error`; None before the first load."""
        measured = self._measured(model)
        return measured.estimate_error if measured else None

    def parked_bytes(self, model: ModelFile) -> int:
        return model.parked_bytes(self._parked_memory)

    def record_load(self, model: ModelFile, *, measured_bytes: int, load_ms: int) -> None:
        """Without what will be parked, which comes later."""
        self._measurements.record(
            self._key(model),
            measured_bytes=measured_bytes,
            load_ms=load_ms,
            estimated_bytes=self._needs.need(model).total_bytes,
        )

    def record_growth(self, model: ModelFile, *, measured_bytes: int) -> None:
        self._measurements.record(self._key(model), measured_bytes=measured_bytes)

    def _measured(self, model: ModelFile) -> Measurement | None:
        return self._measurements.get(self._key(model))

    def _key(self, model: ModelFile) -> MeasurementKey:
        return MeasurementKey(
            model=model.id,
            file=model.identity,
            context_length=model.context_length,
            slots=model.slots,
            kv_type=model.kv_type,
            device=self._device.name,
            kind=model.kind,
            pooling=model.pooling,
        )
