"""Logs are bounded while processes write them. Real files, a real limit on the size of files."""

from __future__ import annotations

import fcntl
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.log_files import bound_logs


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """To whoever writes that is as a full disk: OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    log = tmp_path / "api.log"
    log.write_bytes(b"a" * 500 + b"b" * 1000)
    log.chmod(0o600)
    return log


def test_a_log_over_its_bound_becomes_the_older_generation_and_its_writer_goes_on_at_the_start(log: Path):
    older = log.with_suffix(".log.1")
    older.write_bytes(b"of last week" * 1000)
    with log.open("ab", buffering=0) as writer:
        bound_logs(log.parent, 1000)
        writer.write(b"after")
    assert log.read_bytes() == b"after"
    assert older.read_bytes() == b"b" * 1000  # its end, however far it had grown
    assert stat.S_IMODE(older.stat().st_mode) == 0o600
    assert sorted(log.parent.iterdir()) == [log, older]


def test_a_log_within_its_bound_is_left_alone(log: Path):
    bound_logs(log.parent, 1500)
    assert log.stat().st_size == 1500
    assert list(log.parent.iterdir()) == [log]


def test_on_a_disk_without_room_for_a_copy_the_log_is_emptied_all_the_same(log: Path):
    log.with_suffix(".log.1").write_bytes(b"of last week")
    with no_file_beyond(100):
        bound_logs(log.parent, 1000)
    assert log.read_bytes() == b""
    assert list(log.parent.iterdir()) == [log]


def test_two_who_bound_the_same_log_do_not_lose_its_older_generation(log: Path):
    with log.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        bound_logs(log.parent, 1000)
    assert log.stat().st_size == 1500


def test_a_log_that_cannot_be_bounded_stops_neither_the_others_nor_their_writers(log: Path):
    log.with_suffix(".log.1").mkdir()
    other = log.parent / "worker.log"
    other.write_bytes(b"w" * 1001)
    bound_logs(log.parent, 1000)
    assert other.stat().st_size == 0
    bound_logs(log.parent / "removed", 1000)
