"""What a process hears of the page cache: on real files, also as somebody who may only read them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cached_files import bring_in, write_uncached
from workers.page_cache import cached_share, is_cached

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops pages on request")

NUM_BYTES = 8 * 1024**2
NOBODY = 65534


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a file that everybody may read, and nothing of which is cached."""
    with tempfile.TemporaryDirectory() as folder:  # nobody else gets into those of pytest
        os.chmod(folder, 0o755)
        path = write_uncached(Path(folder) / "weights", NUM_BYTES)
        path.chmod(0o644)
        yield path


def as_nobody(ask: Callable[[], float | None]) -> str:
    """The answer of a child process that has given up its rights."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(theirs, str(ask()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_reader_of_a_file_that_belongs_to_others_hears_how_much_of_it_is_cached(path: Path) -> None:
    assert as_nobody(lambda: cached_share(path)) == "0.0"
    bring_in(path, 0, NUM_BYTES // 2)
    assert as_nobody(lambda: is_cached(path)) == "False"
    bring_in(path, NUM_BYTES // 2, NUM_BYTES)
    assert as_nobody(lambda: cached_share(path)) == "1.0"


@pytest.fixture
def belongs_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file; then the kernel claims that all of it is cached."""
    monkeypatch.setattr("os.geteuid", lambda: NOBODY + 1)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("workers.page_cache._resident_share", lambda file, size: 1.0)


@pytest.mark.usefixtures("belongs_to_others")
def test_claim_that_all_is_cached_is_tried_on_files_of_others(path: Path) -> None:
    assert cached_share(path) == 0.0
    bring_in(path, 0, NUM_BYTES)
    assert cached_share(path) == 1.0


def test_owner_is_told_without_a_try(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.preadv")
    bring_in(path, 0, NUM_BYTES)
    assert cached_share(path) == 1.0


def test_many_looks_do_not_make_a_file_cached(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as others:
        others.setattr("workers.page_cache._hears_the_truth", lambda path: False)
        others.setattr("workers.page_cache._resident_share", lambda file, size: 1.0)
        assert [is_cached(path) for _ in range(100)] == [False] * 100
    assert (cached_share(path) or 0.0) < 0.25  # of 2048 pages three per look, or none where the disk was slow


@pytest.mark.usefixtures("belongs_to_others")
def test_nothing_is_told_of_files_of_others_where_no_read_can_be_tried(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_supported(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.preadv", not_supported)
    assert is_cached(path) is None


def test_nothing_is_told_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert is_cached(tmp_path / "empty") is None
