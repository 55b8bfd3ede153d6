"""Where loads come from: on real files, with the page cache as the kernel tells it, and on figures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cached_files import write_uncached
from workers.page_cache import read_through
from workers.tiers import Load, LoadSpeed, Tiers, disk_of, load_speed

MIB = 1024**2
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops pages on request")


@dataclass
class File:
    id: str
    path: Path

    @property
    def file_bytes(self) -> int:
        return self.path.stat().st_size


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stems of the files that were read ahead, whole; none of them stays in the page cache."""
    read: list[str] = []

    def reads(path: Path, goes_on: object) -> bool:
        read.append(path.stem)
        return True

    monkeypatch.setattr("workers.page_cache.cached_share", lambda path: 0.0)
    monkeypatch.setattr("workers.tiers.read_through", reads)
    return read


@on_linux
def test_prefetch_brings_a_file_into_the_page_cache(tmp_path: Path) -> None:
    files = [File(name, write_uncached(tmp_path / name, 8 * MIB)) for name in "ab"]
    tiers = Tiers(lambda: files, lambda: 1024 * MIB)
    tiers.look()
    assert [tiers.of("a"), tiers.of("b"), tiers.of("nobody")] == ["disk", "disk", None]
    tiers.prefetch(("b", "nobody"))
    tiers.look()
    tiers.look()
    assert [tiers.of("a"), tiers.of("b")] == ["disk", "page_cache"]


def test_file_for_which_there_is_no_room_is_not_read_ahead(tmp_path: Path, read: list[str]) -> None:
    files = []
    for name, size in (("small", 10), ("large", 11)):
        (tmp_path / name).write_bytes(bytes(size))
        files.append(File(name, tmp_path / name))
    tiers = Tiers(lambda: files, lambda: 10)
    tiers.prefetch(("large", "small"))
    tiers.look()
    assert read == ["small"]


def test_nothing_is_read_ahead_while_a_load_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(MIB))
    monkeypatch.setattr("workers.page_cache.cached_share", lambda path: 0.0)
    monkeypatch.setattr("workers.tiers.PAUSE_S", 0.0)
    loads = iter([True, True, False])
    seen: list[bool] = []

    def reads(path: Path, goes_on: Callable[[float], bool]) -> bool:
        seen.append(goes_on(0.0))
        assert next(loads, None) is None, "went on before the load was over"
        return True

    monkeypatch.setattr("workers.tiers.read_through", reads)
    tiers = Tiers(lambda: [File("a", path)], lambda: 1024 * MIB, lambda: next(loads))
    tiers.prefetch(("a",))
    tiers.look()
    assert seen == [True]


def test_loads_without_end_do_not_keep_from_looking_at_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"a": 0.0, "b": 0.0}
    read: list[str] = []

    def reads(path: Path, goes_on: Callable[[float], bool]) -> bool:
        read.append(path.name)
        return goes_on(0.0)

    monkeypatch.setattr("workers.page_cache.cached_share", lambda path: shares[path.name])
    monkeypatch.setattr("workers.tiers.read_through", reads)
    monkeypatch.setattr("workers.tiers.PAUSE_S", 0.0)
    for name in shares:
        (tmp_path / name).touch()
    tiers = Tiers(lambda: [File(name, tmp_path / name) for name in shares], lambda: 1024 * MIB, lambda: True)
    tiers.prefetch(("a", "b"))
    tiers.look()
    shares["a"] = 1.0
    tiers.look()
    assert tiers.of("a") == "page_cache"
    assert read == ["a", "b"]


def test_warm_model_that_is_mapped_comes_from_the_disk_again_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for name, size in (("small", 10), ("large", 1000)):
        (tmp_path / name).write_bytes(bytes(size))
        files.append(File(name, tmp_path / name))
    monkeypatch.setattr("workers.page_cache.cached_share", lambda path: 1.0)
    mapped, copied = (Tiers(lambda: files, lambda: 100, maps_weights=is_mapped) for is_mapped in (True, False))
    for tiers in (mapped, copied):
        tiers.look()
    assert [mapped.of(name, is_warm=True) for name in ("small", "large", "nobody")] == ["page_cache", "disk", None]
    assert mapped.of("large") == copied.of("large", is_warm=True) == "page_cache"


def test_nothing_is_read_ahead_where_warm_models_live_in_the_page_cache(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    tiers = Tiers(lambda: [File("a", tmp_path / "a")], lambda: 1000, maps_weights=True)
    tiers.prefetch(("a",))
    tiers.look()
    assert (tiers.of("a"), tiers.cache_bytes, read) == ("disk", 0, [])


def test_only_a_load_of_what_is_not_cached_needs_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(10))
    shares = iter([0.5, 1.0, None])
    monkeypatch.setattr("workers.page_cache.cached_share", lambda path: next(shares))
    assert [disk_of(path), disk_of(path), disk_of(path)] == [path.stat().st_dev, None, None]


def test_room_of_the_page_cache_is_told_in_coarse_steps() -> None:
    room = iter([0b10110111 * MIB, 0b10111111 * MIB, 5])
    tiers = Tiers(lambda: [], lambda: next(room))
    assert tiers.cache_bytes == 0
    for expected in (0b10110000 * MIB, 0b10110000 * MIB, 5):
        tiers.look()
        assert tiers.cache_bytes == expected


def test_file_that_does_not_stay_in_the_page_cache_is_read_once_per_wish(tmp_path: Path, read: list[str]) -> None:
    files = [File(name, tmp_path / f"{name}.gguf") for name in "ab"]
    for file in files:
        file.path.touch()
    tiers = Tiers(lambda: files, lambda: 1024 * MIB)
    for wish in (("a",), ("a",), ("a", "b"), (), ("a",)):
        tiers.prefetch(wish)
        tiers.look()
    assert read == ["a", "b", "a"]


def test_reading_ahead_stops_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(9 * MIB))
    answers = iter([True, False])
    assert read_through(path, lambda share: next(answers)) is False
    shares: list[float] = []

    def hears(share: float) -> bool:
        shares.append(share)
        return True

    assert read_through(path, hears) is True
    assert shares == [0, 4 / 9, 8 / 9, 1.0]


def test_speed_of_a_tier_is_what_its_bytes_cost_beyond_the_quickest_load() -> None:
    quick = [Load("page_cache", 0, 200), Load("page_cache", 1000 * MIB, 450), Load("page_cache", 1000 * MIB, 450)]
    slow = [Load("disk", 1000 * MIB, 4200)] * 3
    assert load_speed([*quick, *slow]) == LoadSpeed(200, (("disk", 250 * MIB), ("page_cache", 4000 * MIB)))


@pytest.mark.parametrize("loads", [[], [Load("disk", MIB, 100)] * 2, [Load("disk", MIB, 100)] * 9])
def test_speed_is_not_told_from_too_little(loads: list[Load]) -> None:
    assert load_speed(loads).bandwidths == ()


def test_load_counts_for_the_tier_that_its_file_was_in(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(MIB))
    file = File("a", path)
    tiers = Tiers(lambda: [file], lambda: 1024 * MIB)
    tiers.loaded("a", 100)  # nobody has looked yet
    tiers.look()
    for load_ms in (100, 150, 200):
        tiers.loaded("a", load_ms)
    assert tiers.speed() == load_speed([Load(str(tiers.of("a")), MIB, load_ms) for load_ms in (100, 150, 200)])
