"""The formula at once, the dry run as soon as it has answered."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.support.scripted_pool import FakeDevice, make_model
from tests.support.scripted_runner import MIB
from workers.devices import LoadWindow
from workers.dry_runs import DryRunStopped, KnownAnswers, answer_key, dry_run
from workers.engine.base import EngineConfig
from workers.engine.dry_run import DryRun
from workers.idle_time import QuietWait, give_way
from workers.needs import Needs, formula_need


def config_of(model) -> EngineConfig:
    return EngineConfig(model_path=model.path, context_length=model.context_length, slots=model.slots, threads=1)


def test_the_dry_run_takes_the_place_of_the_formula():
    device, model = FakeDevice(runner_overhead_bytes=5), make_model("m", mib=1)
    asked, answered = [], threading.Event()

    def run(config: EngineConfig, *, gives_way: bool, is_hurried: Callable[[], bool]) -> DryRun:
        asked.append(config)
        return DryRun(weight_bytes=2 * MIB, kv_bytes=2, compute_bytes=3, output_bytes=4)

    needs = Needs(device, config_of, run=run, quiet_s=0)
    needs.listen(answered.set)
    assert needs.need(model) == formula_need(model, device)
    assert answered.wait(10)
    assert needs.need(model).total_bytes == 2 * MIB + 2 + 3 + 4 + 5
    assert len(asked) == 1


def test_a_dry_run_that_fails_leaves_the_formula_and_is_not_repeated():
    device, model = FakeDevice(), make_model("m", mib=1)
    asked = []
    tried = threading.Event()

    def run(config: EngineConfig, *, gives_way: bool, is_hurried: Callable[[], bool]) -> None:
        asked.append(config)
        tried.set()

    needs = Needs(device, config_of, run=run, quiet_s=0)
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

    def run(config: EngineConfig, *, gives_way: bool, is_hurried: Callable[[], bool]) -> DryRun:
        asked.append(config)
        return DryRun(weight_bytes=1, kv_bytes=2, compute_bytes=3, output_bytes=4)

    def changed() -> None:
        changes.release()
        if fails_first and len(asked) == 1:
            raise RuntimeError("the listener broke")

    needs = Needs(FakeDevice(), config_of, run=run, quiet_s=0)
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


def test_comparing_many_settings_asks_about_none_but_hears_what_is_known():
    needs, asked, changes = answering()
    model = make_model("m", mib=1, slots=4)
    rough = needs.need(model, asks=False)
    assert rough == needs.need(model)  # the formula, and now it is asked
    assert changes.acquire(timeout=10)
    assert needs.need(model, asks=False) == needs.need(model) != rough
    needs.need(make_model("m", mib=1, slots=2), asks=False)
    needs.need(make_model("m", mib=1, slots=1))
    assert changes.acquire(timeout=10)
    assert [config.slots for config in asked] == [4, 1]


class Machine:
    """Dry runs that answer, and what else runs as the test says."""

    def __init__(self) -> None:
        self.is_busy = False
        self.looked = threading.Semaphore(0)
        self.ran: list[tuple[str, bool]] = []  # the file, and whether the process gave way to others
        self.done = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.stalls: set[str] = set()  # files whose dry runs get no time until somebody waits for one
        self.hurried = threading.Event()

    def look(self) -> bool:
        self.looked.release()
        return self.is_busy

    def run(self, config: EngineConfig, *, gives_way: bool, is_hurried: Callable[[], bool]) -> DryRun:
        self.ran.append((config.model_path.stem, gives_way))
        self.begun.release()
        if config.model_path.stem in self.stalls and gives_way:
            assert self.hurried.wait(10)
            assert is_hurried()
            self.stalls.clear()
            raise DryRunStopped
        return DryRun(weight_bytes=1, kv_bytes=2, compute_bytes=3, output_bytes=4)

    def needs(self, known: KnownAnswers | None = None) -> Needs:
        needs = Needs(FakeDevice(), config_of, known=known, run=self.run, quiet_s=0)
        needs.listen(self.done.release, self.look)
        return needs


def test_no_dry_run_begins_while_others_work_but_for_a_model_that_would_not_be_loaded():
    machine = Machine()
    machine.is_busy = True
    needs = machine.needs()
    patient, refused = make_model("patient", mib=1, identity="1"), make_model("refused", mib=1, identity="2")
    needs.need(patient)
    needs.need(refused)
    for _ in range(2):
        assert machine.looked.acquire(timeout=10)
    assert machine.ran == []
    needs.hurry(refused)
    assert machine.done.acquire(timeout=10)
    assert machine.ran == [("refused", False)]
    machine.is_busy = False
    assert machine.done.acquire(timeout=10)
    assert machine.ran == [("refused", False), ("patient", True)]


@pytest.mark.parametrize("waited_for", ["stalled", "other"])
def test_dry_run_that_gives_way_is_begun_again_when_somebody_waits_for_one(waited_for: str):
    machine = Machine()
    machine.stalls.add("stalled")
    needs = machine.needs()
    models = {name: make_model(name, mib=1, identity=name) for name in ("stalled", "other")}
    needs.need(models["stalled"])
    assert machine.begun.acquire(timeout=10)
    needs.hurry(models[waited_for])
    machine.hurried.set()
    assert machine.done.acquire(timeout=10)
    assert machine.ran[:2] == [("stalled", True), (waited_for, False)]
    assert needs.need(models[waited_for]).weight_bytes == 1
    if waited_for == "other":
        assert machine.done.acquire(timeout=10)
    assert needs.need(models["stalled"]).weight_bytes == 1


def test_dry_run_that_others_leave_no_time_is_asked_again_behind_the_others():
    ran: list[str] = []
    done = threading.Semaphore(0)

    def run(config: EngineConfig, *, gives_way: bool, is_hurried: Callable[[], bool]) -> DryRun:
        ran.append(config.model_path.stem)
        if len(ran) == 1:
            needs.need(make_model("b", mib=1, identity="2"))
            raise DryRunStopped
        return DryRun(weight_bytes=1, kv_bytes=2, compute_bytes=3, output_bytes=4)

    needs = Needs(FakeDevice(), config_of, run=run, quiet_s=0)
    needs.listen(done.release)
    needs.need(make_model("a", mib=1, identity="1"))
    assert done.acquire(timeout=10) and done.acquire(timeout=10)
    assert ran == ["a", "b", "a"]


def test_process_of_a_dry_run_that_gives_way_ends_as_soon_as_somebody_waits_for_one(monkeypatch):
    monkeypatch.setattr("workers.dry_runs.COMMAND", (sys.executable, "-c", "import signal; signal.pause()"))
    monkeypatch.setattr("workers.dry_runs.LOOK_S", 0.01)
    looks = iter([False, False, True])
    with pytest.raises(DryRunStopped):
        dry_run(config_of(make_model("m", mib=1)), gives_way=True, is_hurried=lambda: next(looks))


def test_process_of_a_dry_run_that_gives_way_is_given_its_time_in_pieces(monkeypatch):
    answer = DryRun(weight_bytes=1, kv_bytes=2, compute_bytes=3, output_bytes=4)
    program = f"import sys; sys.stdin.read(); print({msgspec.json.encode(answer).decode()!r})"
    monkeypatch.setattr("workers.dry_runs.COMMAND", (sys.executable, "-c", program))
    monkeypatch.setattr("workers.dry_runs.LOOK_S", 0.001)
    assert dry_run(config_of(make_model("m", mib=1)), gives_way=True) == answer


def test_nobody_asks_about_models_that_are_gone():
    machine = Machine()
    machine.is_busy = True
    needs = machine.needs()
    gone, kept = make_model("gone", mib=1, identity="1"), make_model("kept", mib=1, identity="2")
    for model in (gone, kept):
        needs.need(model)
    needs.keep_only([kept])
    machine.is_busy = False
    assert machine.done.acquire(timeout=10)
    assert machine.ran == [("kept", True)]


def test_answers_outlive_the_process_for_the_same_file_and_settings_only(tmp_path):
    path, model = tmp_path / "dry_runs.json", make_model("m", mib=1, identity="1")
    first = Machine()
    first.needs(KnownAnswers(path)).need(model)
    assert first.done.acquire(timeout=10)

    second = Machine()
    needs = second.needs(KnownAnswers(path))
    assert needs.need(model).weight_bytes == 1
    assert second.ran == []
    for other in (make_model("m", mib=1, identity="2"), make_model("m", mib=1, identity="1", slots=7)):
        assert needs.need(other) == formula_need(other, FakeDevice())
        assert second.done.acquire(timeout=10)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\xff"])
def test_a_broken_file_of_answers_is_asked_anew(tmp_path, content: bytes):
    path = tmp_path / "dry_runs.json"
    path.write_bytes(content)
    known = KnownAnswers(path)
    assert known.get("a") is None
    known.put("a", DryRun(weight_bytes=1, kv_bytes=2, compute_bytes=3, output_bytes=4))
    assert KnownAnswers(path).get("a") == known.get("a") is not None


def test_workers_of_one_home_keep_the_answers_of_the_others_and_learn_them_at_their_next_own(tmp_path):
    path = tmp_path / "dry_runs.json"
    one, other = KnownAnswers(path), KnownAnswers(path)
    for known, key, kv_bytes in ((one, "a", 1), (other, "b", 2), (one, "c", 3)):
        known.put(key, DryRun(weight_bytes=1, kv_bytes=kv_bytes, compute_bytes=3, output_bytes=4))
    for known in (one, KnownAnswers(path)):
        found = [known.get(key) for key in "abc"]
        assert [answer.kv_bytes for answer in found if answer] == [1, 2, 3]


def test_the_oldest_answers_make_room(monkeypatch):
    monkeypatch.setattr("workers.dry_runs.MAX_ANSWERS", 2)
    known = KnownAnswers(None)
    for key in "abc":
        known.put(key, DryRun(weight_bytes=1, kv_bytes=2, compute_bytes=3, output_bytes=4))
    assert [known.get(key) is not None for key in "abc"] == [False, True, True]


def test_who_shares_the_cores_changes_no_answer_but_device_and_settings_do():
    config = config_of(make_model("m", mib=1))
    key = answer_key("1", config, "cpu")
    assert answer_key("1", replace(config, turns_path=Path("/elsewhere")), "cpu") == key
    others = [("2", config, "cpu"), ("1", replace(config, context_length=7), "cpu"), ("1", config, "cuda:0")]
    assert key not in {answer_key(*each) for each in others}


def test_quiet_is_a_while_without_work_that_was_watched():
    looks = [(0, False), (0.5, False), (0.9, True), (1.2, False), (2.1, False), (2.2, False), (9, False)]
    times, answers = iter([0, *(at for at, _ in looks)]), iter([is_busy for _, is_busy in looks])
    quiet = QuietWait(lambda: next(answers), monotonic_s=lambda: next(times))
    seen = [quiet.is_over() for _ in looks]
    assert seen == [False, False, False, False, False, True, False]


def test_a_process_that_gives_way_runs_after_all_others():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        give_way(process.pid)
        assert psutil.Process(process.pid).nice() == 19
        if hasattr(os, "SCHED_IDLE"):
            assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
