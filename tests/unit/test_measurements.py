"""Measured figures and their file."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from tasks.fleet import ModelKind
from workers.measurements import MAX_ENTRIES, MeasurementKey, Measurements
from workers.shared_file import sole_writer


def key(model: str = "m", **changes: object) -> MeasurementKey:
    plain = MeasurementKey(model=model, file="10:1", context_length=4096, slots=8, kv_type="f16", device="cpu")
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "measurements.json"


def test_measurement_survives_a_restart(path: Path) -> None:
    Measurements(path).record(key(), measured_bytes=100, load_ms=7)
    found = Measurements(path).get(key())
    assert found is not None
    assert (found.bytes, found.load_ms) == (100, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "11:1"},
        {"context_length": 1},
        {"slots": 1},
        {"kv_type": "q8_0"},
        {"device": "cuda:0"},
        {"model": "n"},
        {"kind": ModelKind.EMBED},
        {"pooling": "cls"},
    ],
)
def test_other_file_or_settings_are_another_measurement(path: Path, changes: dict[str, object]) -> None:
    measurements = Measurements(path)
    measurements.record(key(), measured_bytes=100, load_ms=7)
    assert measurements.get(key(**changes)) is None  # type: ignore[arg-type]


def test_largest_bytes_and_newest_load_time_are_kept(path: Path) -> None:
    measurements = Measurements(path)
    measurements.record(key(), measured_bytes=100, load_ms=7)
    measurements.record(key(), measured_bytes=90, load_ms=9)
    measurements.record(key(), measured_bytes=120)
    found = measurements.get(key())
    assert found is not None
    assert (found.bytes, found.load_ms) == (120, 9)


def test_file_from_before_kinds_were_told_apart_is_of_models_that_generate(path: Path) -> None:
    Measurements(path).record(key(), measured_bytes=100)
    entries = msgspec.json.decode(path.read_bytes())
    for entry in entries:
        del entry["key"]["kind"], entry["key"]["pooling"]
    path.write_bytes(msgspec.json.encode(entries))
    assert Measurements(path).get(key()) is not None
    assert Measurements(path).get(key(kind=ModelKind.EMBED)) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'[{"key": {}}]'])
def test_broken_file_is_ignored_and_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    measurements = Measurements(path)
    assert measurements.get(key()) is None
    measurements.record(key(), measured_bytes=100)
    assert Measurements(path).get(key()) is not None


def test_folder_that_can_not_be_written_costs_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    measurements = Measurements(tmp_path / "file" / "measurements.json")
    measurements.record(key(), measured_bytes=100)
    assert measurements.get(key()) is not None


def test_oldest_entries_go_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.measurements.MAX_ENTRIES", 2)
    measurements = Measurements(path)
    for model in ("a", "b", "a", "c"):
        measurements.record(key(model), measured_bytes=1)
    assert measurements.get(key("b")) is None
    assert measurements.get(key("a")) is not None
    assert MAX_ENTRIES > 2


def test_workers_of_one_home_keep_what_the_others_measured(path: Path) -> None:
    one, other = Measurements(path), Measurements(path)
    one.record(key("a"), measured_bytes=100, load_ms=7)
    other.record(key("b"), measured_bytes=50, load_ms=5)
    one.record(key("c"), measured_bytes=10)
    other.record(key("a"), measured_bytes=90, load_ms=9)
    found = [Measurements(path).get(key(model)) for model in "abc"]
    assert [(entry.bytes, entry.load_ms) for entry in found if entry] == [(100, 9), (50, 5), (10, 0)]


def test_figures_can_be_had_while_the_file_is_being_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measurements = Measurements(path)
    seen: list[int] = []

    def replace_slowly(_path: Path, _content: bytes) -> None:
        asking = threading.Thread(target=lambda: seen.append(measurements.get(key()).bytes))  # type: ignore[union-attr]
        asking.start()
        asking.join(timeout=10)

    monkeypatch.setattr("workers.measurements.replace_file", replace_slowly)
    measurements.record(key(), measured_bytes=5)
    assert seen == [5]


def test_measurement_made_while_another_worker_hangs_over_the_file_is_written_with_the_next_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.shared_file.TURN_LIMIT_S", 0)
    measurements = Measurements(path)
    with sole_writer(path):
        measurements.record(key("a"), measured_bytes=1)
    assert not path.exists()
    measurements.record(key("b"), measured_bytes=2)
    written = Measurements(path)
    assert [found.bytes for name in "ab" if (found := written.get(key(name)))] == [1, 2]
