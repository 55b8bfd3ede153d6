"""Which workers a model with a device of its own may go to."""

from __future__ import annotations

import msgspec
import pytest

from tasks.controller.decisions import Code
from tests.unit.test_plan import decide, offer, waiting, worker


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("cpu", "on-cpu"), ("cuda", "on-gpu-10"), ("cuda:1", "on-gpu-1"), ("cuda:10", "on-gpu-10")],
)
def test_model_goes_to_its_device(wanted: str, expected: str) -> None:
    offers = (offer("a", devices=(wanted,)),)
    devices = {"on-cpu": "cpu", "on-gpu-1": "cuda:1 NVIDIA H100", "on-gpu-10": "cuda:10 NVIDIA H100"}
    if wanted == "cuda":
        del devices["on-gpu-1"]
    workers = tuple(msgspec.structs.replace(worker(offers, name=name), device=each) for name, each in devices.items())
    placed = decide(workers, (waiting("a"),)).placement.workers
    assert [name for name, each in placed.items() if each.hold] == [expected]


def test_model_whose_device_nobody_has_is_refused_with_what_there_is() -> None:
    decided = decide((worker((offer("a", devices=("cuda:1",)),)),), (waiting("a"),))
    (refused,) = decided.refused().values()
    assert refused.code is Code.WRONG_DEVICE
    assert "cuda:1 only" in refused.text
