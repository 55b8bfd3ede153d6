"""The formula at once, the dry run as soon as it has answered."""

from __future__ import annotations

import threading

from tests.support.scripted_pool import FakeDevice, make_model
from tests.support.scripted_runner import MIB
from workers.devices import LoadWindow
from workers.engine.base import EngineConfig
from workers.engine.dry_run import DryRun
from workers.needs import Needs, formula_need


def config_of(model) -> EngineConfig:
    return EngineConfig(model_path=model.path, context_length=model.context_length, slots=model.slots, threads=1)


def test_the_dry_run_takes_the_place_of_the_formula():
    device, model = FakeDevice(runner_overhead_bytes=5), make_model("m", mib=1)
    asked, answered = [], threading.Event()

    def run(config: EngineConfig) -> DryRun:
        asked.append(config)
        return DryRun(weight_bytes=2 * MIB, kv_bytes=2, compute_bytes=3, output_bytes=4)

    needs = Needs(device, config_of, run=run)
    needs.listen(answered.set)
    assert needs.need(model) == formula_need(model, device)
    assert answered.wait(10)
    assert needs.need(model).total_bytes == 2 * MIB + 2 + 3 + 4 + 5
    assert len(asked) == 1


def test_a_dry_run_that_fails_leaves_the_formula_and_is_not_repeated():
    device, model = FakeDevice(), make_model("m", mib=1)
    asked = []
    tried = threading.Event()

    def run(config: EngineConfig) -> None:
        asked.append(config)
        tried.set()

    needs = Needs(device, config_of, run=run)
    for _ in range(3):
        assert needs.need(model) == formula_need(model, device)
    assert tried.wait(10)
    assert needs.need(model) == formula_need(model, device)
    assert len(asked) == 1


def test_a_load_that_was_alone_took_what_is_no_longer_free():
    assert LoadWindow(100, 1).taken_bytes(40, 1) == 60
    assert LoadWindow(100, 1).taken_bytes(120, 1) == 0
    assert LoadWindow(100, 1).taken_bytes(40, 2) is None
    assert LoadWindow(None, 1).taken_bytes(40, 1) is None
