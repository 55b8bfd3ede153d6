"""Threads follow the quotas of nested control groups, of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.support.group_tree import GroupTree
from workers.cores import usable_cores


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GroupTree:
    """On a machine of eight cores."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return GroupTree(tmp_path)


@pytest.mark.parametrize(
    ("content", "cores"),
    [("100000 100000", 1), ("250000 100000", 2), ("50000 100000", 1), ("0 0", 8), ("max 100000", 8)],
)
def test_quota_of_the_own_group_bounds_the_threads(tree: GroupTree, content: str, cores: int) -> None:
    tree.own_v2("/unit/worker")
    tree.write(tree.v2, "unit/worker", "cpu.max", content)
    assert usable_cores(tree.proc) == cores


def test_the_tightest_quota_on_the_way_up_binds_and_others_do_not(tree: GroupTree) -> None:
    tree.own_v2("/machine/unit/worker")
    tree.write(tree.v2, "machine", "cpu.max", "600000 100000")
    tree.write(tree.v2, "machine/unit", "cpu.max", "150000 50000")
    tree.write(tree.v2, "machine/unit/worker", "cpu.max", "max 100000")
    tree.write(tree.v2, "machine/other", "cpu.max", "100000 100000")
    assert usable_cores(tree.proc) == 3


def test_quotas_of_version_1_bind_in_the_group_that_a_container_sees_as_the_root(tree: GroupTree) -> None:
    tree.own_v1("/docker/abc/worker", mounted="/docker/abc")
    tree.write(tree.cpu_v1, "", "cpu.cfs_quota_us", "400000")
    tree.write(tree.cpu_v1, "", "cpu.cfs_period_us", "100000")
    tree.write(tree.cpu_v1, "worker", "cpu.cfs_quota_us", "-1")
    tree.write(tree.cpu_v1, "worker", "cpu.cfs_period_us", "100000")
    assert usable_cores(tree.proc) == 4


def test_affinity_bounds_the_threads_where_there_are_no_control_groups(
    tmp_path: Path, tree: GroupTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    assert usable_cores(tmp_path / "none") == 2
