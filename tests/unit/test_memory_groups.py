"""Limits of nested control groups, of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.group_tree import GroupTree
from workers.memory_groups import available_bytes, idle_bytes, limit_bytes


@pytest.fixture
def tree(tmp_path: Path) -> GroupTree:
    return GroupTree(tmp_path)


def test_the_smallest_limit_on_the_way_up_binds(tree: GroupTree):
    tree.own_v2("/machine/unit/worker")
    tree.group_v2("")
    tree.group_v2("machine", limit=1000, used=100)
    tree.group_v2("machine/unit", limit=400, used=90)
    tree.group_v2("machine/unit/worker", limit=600, used=80)
    tree.group_v2("machine/other", limit=1)
    assert limit_bytes(tree.proc) == 400
    assert available_bytes(tree.proc) == 310


def test_a_wider_group_that_others_fill_leaves_less_than_a_narrow_one(tree: GroupTree):
    tree.own_v1("/pod/worker")
    tree.group_v1("")
    tree.group_v1("pod", limit=1000, used=900)
    tree.group_v1("pod/worker", limit=500, used=50)
    assert limit_bytes(tree.proc) == 500
    assert available_bytes(tree.proc) == 100


def test_pages_of_files_count_as_left_and_as_idle_if_nobody_has_used_them_lately(tree: GroupTree):
    tree.own_v1("/worker")
    tree.group_v1("worker", limit=500, used=490, inactive=300, active=110)
    assert (available_bytes(tree.proc), idle_bytes(tree.proc)) == (420, 310)
    tree.own_v2("/worker")
    tree.group_v2("worker", limit=300, used=290, inactive=100, active=140)
    assert (available_bytes(tree.proc), idle_bytes(tree.proc)) == (250, 110)


def test_group_that_holds_more_than_its_limit_has_nothing_left(tree: GroupTree):
    tree.own_v2("/worker")
    tree.group_v2("worker", limit=100, used=250, active=50)
    assert (available_bytes(tree.proc), idle_bytes(tree.proc)) == (0, 0)


def test_mount_whose_name_is_no_text_does_not_hide_the_limits(tree: GroupTree):
    with (tree.proc / "self" / "mountinfo").open("ab") as file:
        file.write(b"30 23 8:1 / /media/B\xfccher rw - vfat /dev/sdb1 rw\n")
    tree.own_v2("/worker")
    tree.group_v2("worker", limit=300)
    assert limit_bytes(tree.proc) == 300


def test_beyond_the_mark_where_the_kernel_throttles_nothing_is_left(tree: GroupTree):
    tree.own_v2("/worker")
    tree.group_v2("worker", limit=500, high=200, used=250)
    assert limit_bytes(tree.proc) == 200
    assert available_bytes(tree.proc) == 0


def test_a_container_sees_its_own_group_as_the_root(tree: GroupTree):
    tree.own_v1("/docker/abc", mounted="/docker/abc")
    tree.group_v1("", limit=500, used=100)
    assert available_bytes(tree.proc) == 400


def test_a_group_below_that_of_a_container_is_found(tree: GroupTree):
    tree.own_v1("/docker/abc/worker", mounted="/docker/abc")
    tree.group_v1("", limit=500, used=100)
    tree.group_v1("worker", limit=300, used=0)
    assert available_bytes(tree.proc) == 300


def test_a_group_outside_of_what_is_mounted_leaves_the_mounted_root(tree: GroupTree):
    tree.own_v2("/../elsewhere", mounted="/docker/abc")
    tree.group_v2("", limit=500)
    assert limit_bytes(tree.proc) == 500


@pytest.mark.parametrize("content", ["", "garbage", "0::/", "4:memory"])
def test_without_limits_there_is_no_figure(tree: GroupTree, content: str):
    (tree.proc / "self" / "cgroup").write_text(content)
    (tree.proc / "self" / "mountinfo").write_text("31 23 0:28 /\n")
    assert limit_bytes(tree.proc) is None
    assert available_bytes(tree.proc) is None


def test_a_level_without_limit_or_without_figures_does_not_bind(tree: GroupTree):
    tree.own_v1("/a/b")
    tree.group_v1("a")
    assert limit_bytes(tree.proc) is None
