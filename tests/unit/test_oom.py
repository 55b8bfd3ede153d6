"""Whose out-of-memory kills count."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.group_tree import GroupTree
from workers.oom import kernel_oom_kills


@pytest.fixture
def tree(tmp_path: Path) -> GroupTree:
    """In which the whole machine has seen two kills."""
    tree = GroupTree(tmp_path)
    (tree.proc / "vmstat").write_text("nr_free_pages 5\noom_kill 2\n")
    return tree


def test_kills_in_a_nested_group_count_and_those_of_strangers_do_not(tree: GroupTree) -> None:
    tree.own_v2("/unit/worker")
    tree.write(tree.v2, "unit", "memory.events", "oom_kill 9")
    tree.write(tree.v2, "unit/worker", "memory.events", "low 0\noom 4\noom_kill 3\noom_group_kill 0")
    assert kernel_oom_kills(tree.proc) == 3


def test_group_without_the_memory_controller_is_counted_by_the_one_above(tree: GroupTree) -> None:
    tree.own_v2("/unit/worker")
    tree.write(tree.v2, "unit", "memory.events", "oom_kill 9")
    assert kernel_oom_kills(tree.proc) == 9


def test_kills_in_a_group_of_version_1_count(tree: GroupTree) -> None:
    tree.own_v1("/unit/worker")
    tree.write(tree.memory_v1, "unit/worker", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4")
    assert kernel_oom_kills(tree.proc) == 4


def test_without_a_group_that_counts_kills_of_the_whole_machine_do(tree: GroupTree) -> None:
    tree.own_v1("/worker")
    tree.write(tree.memory_v1, "worker", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0")  # before Linux 4.13
    assert kernel_oom_kills(tree.proc) == 2


def test_kernel_that_does_not_say_counts_as_none(tmp_path: Path) -> None:
    assert kernel_oom_kills(tmp_path / "absent") == 0
