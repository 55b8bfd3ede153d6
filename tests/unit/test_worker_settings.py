"""A worker's settings: defaults that follow the machine, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import InvalidSetting
from tasks.settings import load_settings
from workers.settings import WorkerSettings


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WorkerSettings.model_fields:
        monkeypatch.delenv(f"KEEPWARM_{name.upper()}", raising=False)


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEEPWARM_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("KEEPWARM_MEMORY_BUDGET", "2GiB")
    settings = load_settings(WorkerSettings)
    assert (settings.models_dir, settings.memory_budget) == (tmp_path.resolve(), 2 * 1024**3)
    assert (settings.slots, settings.gpu_layers, settings.engine) == (8, 0, "llama_cpp")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slots", "0"),
        ("memory_budget", "much"),
        ("device", "tpu"),
        ("engine", "vllm"),
        ("gpu_layers", "-2"),
        ("split_mode", "column"),
        ("tensor_split", "a,b"),
        ("tensor_split", "3,1"),
    ],
)
def test_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"KEEPWARM_{name.upper()}", value)
    with pytest.raises(InvalidSetting, match=f"^KEEPWARM_{name.upper()}: .*{value}"):
        load_settings(WorkerSettings)


@pytest.mark.parametrize(
    ("environment", "layers", "gpu"),
    [
        ({"DEVICE": "cuda"}, -1, 0),
        ({"DEVICE": "cuda:2"}, -1, 2),
        ({"DEVICE": "cuda:2", "GPU_LAYERS": "20"}, 20, 2),
        ({"DEVICE": "cuda", "MAIN_GPU": "1"}, -1, 1),
        ({"DEVICE": "cpu"}, 0, 0),
    ],
)
def test_layers_follow_the_device(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], layers: int, gpu: int
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"KEEPWARM_{name}", value)
    settings = load_settings(WorkerSettings)
    assert (settings.gpu_layers, settings.main_gpu) == (layers, gpu)


def test_shares_of_gpus_are_a_list_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPWARM_SPLIT_MODE", "layer")
    monkeypatch.setenv("KEEPWARM_TENSOR_SPLIT", "3, 1")
    assert load_settings(WorkerSettings).tensor_split == (3.0, 1.0)
    monkeypatch.setenv("KEEPWARM_TENSOR_SPLIT", "0,0")
    with pytest.raises(InvalidSetting, match=r"^KEEPWARM_TENSOR_SPLIT: .*one above it"):
        load_settings(WorkerSettings)
