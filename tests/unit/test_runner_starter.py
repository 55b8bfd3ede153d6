"""What a worker's settings and a model make of a runner's configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tasks.fleet import ModelKind
from tests.support.scripted_pool import make_model
from tests.support.scripted_runner import ManualClock, MemorySink
from workers.runner_starter import RunnerStarter
from workers.spare_runner import SpareRunner


def starter(*, threads: int = 8, gpu_layers: int = 0, parked_memory: int | None = None) -> RunnerStarter:
    return RunnerStarter(
        source=SpareRunner("fake", keeps=False),
        sink=MemorySink(),
        clock=ManualClock().clock(),
        log_dir=Path("unused"),
        kind="fake",
        threads=threads,
        turns_path=None,
        gpu_layers=gpu_layers,
        main_gpu=0,
        use_extra_bufts=True,
        stall_s=1,
        load_stall_s=1,
        parked_memory=parked_memory,
    )


@pytest.mark.parametrize(("mib", "threads"), [(2, 1), (15, 1), (40, 3), (4000, 8)])
def test_small_model_gets_fewer_threads(mib: int, threads: int) -> None:
    assert starter().config_for(make_model("m", mib=mib)).engine.threads == threads


@pytest.mark.parametrize(
    ("wished", "gpu_layers", "kv_type"), [("auto", 0, "bf16/f16"), ("auto", -1, "f16"), ("q8_0", 0, "q8_0")]
)
def test_kv_type_follows_the_device_unless_it_is_set(wished: str, gpu_layers: int, kv_type: str) -> None:
    model = replace(make_model("m", mib=10), kv_type=wished)
    assert starter(gpu_layers=gpu_layers).config_for(model).engine.kv_type == kv_type


def test_engine_is_told_whether_the_weights_are_steady() -> None:
    steady = replace(make_model("m", mib=64), has_steady_weights=True)
    assert starter().config_for(steady).engine.has_steady_weights
    assert not starter().config_for(replace(steady, has_steady_weights=False)).engine.has_steady_weights


def test_parked_memory_goes_to_models_that_generate() -> None:
    model = make_model("m", mib=10)
    assert starter(parked_memory=123).config_for(model).engine.parked_bytes == 123
    encoder = replace(model, kind=ModelKind.EMBED)
    assert starter(parked_memory=123).config_for(encoder).engine.parked_bytes == 0
