"""On which devices a machine's workers should run, when nobody says how many there are."""

from __future__ import annotations

from collections.abc import Mapping

from workers.devices import NvidiaDevice, NvmlUnavailable
from workers.settings import WorkerSettings


def worker_devices(settings: WorkerSettings, environment: Mapping[str, str]) -> tuple[str, ...]:
    """One `KEEPWARM_DEVICE` per worker: each GPU when models go to GPUs and none is named; else what is wished.

    CUDA_VISIBLE_DEVICES hides GPUs from CUDA and not from NVML, and gives them other numbers: whoever sets it, names
    the devices of his workers himself."""
    wished = (settings.device,)
    goes_to_gpus = settings.gpu_layers != 0 and settings.device in ("auto", "cuda")
    names_one = "main_gpu" in settings.model_fields_set or "CUDA_VISIBLE_DEVICES" in environment
    if not goes_to_gpus or names_one or settings.split_mode != "none":
        return wished
    try:
        count = NvidiaDevice.count()
    except NvmlUnavailable:
        return wished
    return tuple(f"cuda:{index}" for index in range(count)) if count > 1 else wished
