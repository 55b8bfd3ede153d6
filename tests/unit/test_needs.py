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


def answering(*, fails_first: bool = False) -> tuple[Needs, list[EngineConfig], threading.Semaphore]:
    """Needs with a dry run that answers, the settings it was asked about, and a count of the changes it told of."""
    asked: list[EngineConfig] = []
    changes = threading.Semaphore(0)

    def run(config: EngineConfig) -> DryRun:
        asked.append(config)
        return DryRun(weight_bytes=1, kv_bytes=2, compute_bytes=3, output_bytes=4)

    def changed() -> None:
        changes.release()
        if fails_first and len(asked) == 1:
            raise RuntimeError("the listener broke")

    needs = Needs(FakeDevice(), config_of, run=run)
    needs.listen(changed)
    return needs, asked, changes


def test_a_listener_that_breaks_does_not_end_the_dry_runs():
    needs, asked, changes = answering(fails_first=True)
    for name in ("a", "b"):
        needs.need(make_model(name, mib=1))
        assert changes.acquire(timeout=10)
    assert [config.model_path.name for config in asked] == ["a.gguf", "b.gguf"]


def test_the_same_settings_are_asked_once_and_others_for_themselves():
    needs, asked, changes = answering()
    for slots in (4, 2, 4, 2):
        needs.need(make_model("m", mib=1, slots=slots))
    assert changes.acquire(timeout=10) and changes.acquire(timeout=10)
    assert [config.slots for config in asked] == [4, 2]


def test_models_that_are_gone_are_forgotten():
    needs, asked, changes = answering()
    gone, kept = make_model("gone", mib=1, identity="1"), make_model("kept", mib=1, identity="2")
    for model in (gone, kept):
        needs.need(model)
        assert changes.acquire(timeout=10)
    needs.keep_only([kept])
    needs.need(kept)
    needs.need(gone)
    assert changes.acquire(timeout=10)
    assert [config.model_path.name for config in asked] == ["gone.gguf", "kept.gguf", "gone.gguf"]
