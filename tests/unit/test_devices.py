"""Devices: what is available, what a runner takes, and whether it has let go."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.errors import InvalidSetting
from tests.support.fake_nvml import FakeNvml
from tests.support.group_tree import GroupTree
from workers.devices import CpuDevice, ModelMapping, NvidiaDevice, NvmlUnavailable, default_budget, find_device
from workers.settings import WorkerSettings
from workers.worker_devices import worker_devices

MIB, GIB = 1024**2, 1024**3
NO_MAPPING = ModelMapping(paths=(), weight_bytes=0)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SMAPS = """00400000-7fff0000 ---p 00000000 00:00 0    [rollup]
Rss:               90000 kB
Pss:               60000 kB
Pss_Anon:          40000 kB
Shared_Dirty:      {shared_dirty} kB
Anonymous:         41000 kB
Swap:               2000 kB
SwapPss:            1000 kB
"""
MAPS = """55d0c0000000-55d0c0001000 r--p 00000000 08:01 1    /usr/bin/python
7f0000000000-7f0000400000 r--s 00000000 08:01 2                  /models/with space.gguf
7f0000800000-7f0000900000 r--s 00400000 08:01 2                  /models/with space.gguf
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0                  [stack]
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    process = tmp_path / "42"
    process.mkdir()
    (process / "smaps_rollup").write_text(SMAPS.format(shared_dirty=1500))
    (process / "maps").write_text(MAPS)
    return tmp_path


@linux_only
def test_runner_takes_its_private_bytes_and_the_mapped_weights_once(proc: Path) -> None:
    mapping = ModelMapping(paths=(Path("/models/with space.gguf"),), weight_bytes=999)
    taken = CpuDevice(proc=proc).runner_bytes(42, mapping)
    assert taken == (39500 + 1000) * 1024 + 5 * 1024**2


@linux_only
def test_weights_that_are_not_mapped_are_not_counted_twice(proc: Path) -> None:
    mapping = ModelMapping(paths=(Path("/models/other.gguf"),), weight_bytes=999)
    assert CpuDevice(proc=proc).runner_bytes(42, mapping) == (39500 + 1000) * 1024


@linux_only
def test_dirty_pages_of_a_shared_file_are_not_taken_for_pages_shared_since_a_fork(proc: Path) -> None:
    (proc / "42" / "smaps_rollup").write_text(SMAPS.format(shared_dirty=30_000))
    assert CpuDevice(proc=proc).runner_bytes(42, NO_MAPPING) == (39000 + 1000) * 1024


def test_forked_runner_is_expected_to_take_less() -> None:
    assert CpuDevice(forks_runners=True).runner_overhead_bytes < CpuDevice().runner_overhead_bytes


@linux_only
def test_process_that_is_gone_has_no_figure_and_has_released(proc: Path) -> None:
    device = CpuDevice(proc=proc)
    assert device.runner_bytes(43, NO_MAPPING) is None
    assert device.has_released(43)
    assert not device.has_released(42)


@linux_only
def test_own_process_is_measured_with_a_real_mapping(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"\1" * 2_000_000)
    device = CpuDevice()
    before = device.runner_bytes(os.getpid(), ModelMapping(paths=(path,), weight_bytes=0))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        during = device.runner_bytes(os.getpid(), ModelMapping(paths=(path,), weight_bytes=0))
    assert before is not None
    assert during is not None
    assert abs(during - before - 2_000_000) < 1_000_000


@linux_only
def test_limits_of_control_groups_bound_what_is_available(tmp_path: Path) -> None:
    tree = GroupTree(tmp_path)
    tree.own_v2("/")
    tree.group_v2("", limit=64 * MIB, used=16 * MIB)
    device = CpuDevice(proc=tree.proc)
    assert device.total_bytes() == 64 * MIB
    assert device.available_bytes() == 48 * MIB
    assert default_budget(device) == int(48 * MIB * 0.8)


def test_without_control_groups_there_is_the_machine(tmp_path: Path) -> None:
    device = CpuDevice(proc=tmp_path)
    assert device.total_bytes() == psutil.virtual_memory().total
    assert device.available_bytes() > 0


def test_other_systems_use_unique_bytes_and_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.devices.sys.platform", "darwin")
    device = CpuDevice()
    taken = device.runner_bytes(os.getpid(), ModelMapping(paths=(), weight_bytes=10 * GIB))
    assert taken is not None
    assert taken > 10 * GIB
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert device.runner_bytes(gone.pid, NO_MAPPING) is None
    assert device.has_released(gone.pid)


def test_gpu_tells_its_name_and_memory() -> None:
    device = NvidiaDevice(FakeNvml(processes={7: 30 * GIB}), 0)
    assert device.name == "cuda:0 NVIDIA H100"
    assert (device.total_bytes(), device.available_bytes()) == (80 * GIB, 50 * GIB)
    assert NvidiaDevice(FakeNvml(name=b"Tesla"), 0).name == "cuda:0 Tesla"


def test_gpu_tells_the_bytes_of_a_process_when_the_driver_does() -> None:
    device = NvidiaDevice(FakeNvml(processes={7: 3 * GIB, 8: None}), 0)
    assert device.runner_bytes(7, NO_MAPPING) == 3 * GIB
    assert device.runner_bytes(8, NO_MAPPING) is None
    assert device.runner_bytes(9, NO_MAPPING) is None
    assert not device.has_released(7)
    assert device.has_released(9)


def test_gpu_that_lists_no_processes_measures_nothing_and_trusts_the_end_of_the_process() -> None:
    device = NvidiaDevice(FakeNvml(processes={7: GIB}, refuses_processes=True), 0)
    assert device.runner_bytes(7, NO_MAPPING) is None
    assert device.has_released(7)


def test_gpus_that_models_are_split_over_count_as_one() -> None:
    device = NvidiaDevice(FakeNvml(processes={7: 3 * GIB}, num_gpus=2), 0, 1)
    assert device.name == "cuda:0+1 NVIDIA H100"
    assert (device.total_bytes(), device.available_bytes()) == (160 * GIB, 154 * GIB)
    assert device.runner_bytes(7, NO_MAPPING) == 6 * GIB


def test_missing_driver_or_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NvmlUnavailable, match="Driver Not Loaded"):
        NvidiaDevice(FakeNvml(has_driver=False), 0)
    with pytest.raises(NvmlUnavailable, match="Invalid Argument"):
        NvidiaDevice(FakeNvml(), 3)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.mark.parametrize(
    ("wanted", "gpu_layers", "name"),
    [
        ("auto", 0, "cpu"),
        ("cpu", -1, "cpu"),
        ("auto", -1, "cuda:0 NVIDIA H100"),
        ("cuda", 0, "cuda:0 NVIDIA H100"),
        ("cuda:0", 8, "cuda:0 NVIDIA H100"),
    ],
)
def test_device_is_found_by_name(nvml: FakeNvml, wanted: str, gpu_layers: int, name: str) -> None:
    assert find_device(wanted, gpu_layers=gpu_layers, main_gpu=0).name == name


@pytest.mark.parametrize(("shares", "name"), [((), "cuda:0+1+2"), ((3, 0, 1), "cuda:0+2"), (None, "cuda:1")])
def test_a_split_takes_the_gpus_that_have_a_share(nvml: FakeNvml, shares: tuple[float, ...] | None, name: str) -> None:
    nvml.num_gpus = 3
    assert find_device("cuda", gpu_layers=-1, main_gpu=1, shares=shares).name == f"{name} NVIDIA H100"
    with pytest.raises(InvalidSetting, match=r"KEEPWARM_TENSOR_SPLIT: .*Invalid Argument"):
        find_device("cuda", gpu_layers=-1, main_gpu=0, shares=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("settings", "environment", "devices"),
    [
        ({"device": "cuda"}, {}, ("cuda:0", "cuda:1", "cuda:2")),
        ({"device": "auto", "gpu_layers": -1}, {}, ("cuda:0", "cuda:1", "cuda:2")),
        ({"device": "auto"}, {}, ("auto",)),
        ({"device": "cpu", "gpu_layers": -1}, {}, ("cpu",)),
        ({"device": "cuda:1"}, {}, ("cuda:1",)),
        ({"device": "cuda", "main_gpu": 0}, {}, ("cuda",)),
        ({"device": "cuda", "split_mode": "layer"}, {}, ("cuda",)),
        ({"device": "cuda"}, {"CUDA_VISIBLE_DEVICES": "2"}, ("cuda",)),
    ],
)
def test_every_gpu_gets_a_worker_unless_one_is_named_or_models_are_split(
    nvml: FakeNvml, settings: dict, environment: dict[str, str], devices: tuple[str, ...]
) -> None:
    nvml.num_gpus = 3
    assert worker_devices(WorkerSettings(**settings), environment) == devices


@pytest.mark.parametrize(("num_gpus", "has_driver"), [(1, True), (3, False)])
def test_one_gpu_or_no_driver_leaves_the_wish_as_it_is(nvml: FakeNvml, num_gpus: int, has_driver: bool) -> None:
    nvml.num_gpus, nvml.has_driver = num_gpus, has_driver
    assert worker_devices(WorkerSettings(device="cuda"), {}) == ("cuda",)


def test_auto_falls_back_to_the_cpu_without_a_driver(nvml: FakeNvml) -> None:
    nvml.has_driver = False
    assert find_device("auto", gpu_layers=-1, main_gpu=0).name == "cpu"


@pytest.mark.parametrize(("wanted", "problem"), [("cuda:5", "no GPU 5"), ("tpu", "use auto, cpu or cuda:NUMBER")])
def test_device_that_is_not_there_is_an_invalid_setting(nvml: FakeNvml, wanted: str, problem: str) -> None:
    with pytest.raises(InvalidSetting, match=f"KEEPWARM_DEVICE: .*{problem}"):
        find_device(wanted, gpu_layers=0, main_gpu=0)
