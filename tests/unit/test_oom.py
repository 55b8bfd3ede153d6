from pathlib import Path

from workers.oom import kernel_oom_kills


def test_kills_of_all_sources_are_added(tmp_path: Path) -> None:
    machine, group = tmp_path / "vmstat", tmp_path / "memory.events"
    machine.write_text("nr_free_pages 5\noom_kill 2\n")
    group.write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert kernel_oom_kills((machine, group)) == 5


def test_kernel_that_does_not_say_counts_as_none(tmp_path: Path) -> None:
    assert kernel_oom_kills((tmp_path / "absent",)) == 0
