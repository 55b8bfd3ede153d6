"""The soak benchmark: what counts as growth, how a control group is found, and the schedule that needs no traces."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.memory_group import MemoryGroup, NoMemoryGroup, ReadLimit
from benchmarks.soaking.flatness import Growth, Sample, growth_of
from benchmarks.soaking.memory_chart import memory_chart
from benchmarks.soaking.watch import PoolUse
from benchmarks.swapping.schedule import Scale, zipf_schedule

MIB = 1024**2
MINUTES = 30
SCALE = Scale(rate_per_s=0.5, num_requests=400, length_divisor=8)


def samples(private_mib: list[float], descriptors: list[int] | None = None) -> list[Sample]:
    """One a minute."""
    return [
        Sample(
            at_s=60.0 * minute,
            process="worker",
            rss_bytes=0,
            pss_bytes=0,
            private_bytes=int(private * MIB),
            descriptors=descriptors[minute] if descriptors else 30,
            threads=9,
        )
        for minute, private in enumerate(private_mib)
    ]


def growth(private_mib: list[float], descriptors: list[int] | None = None) -> Growth:
    (found,) = growth_of(samples(private_mib, descriptors))
    return found


def test_a_process_that_fills_its_caches_first_and_then_stays_is_flat():
    assert growth([min(60.0, 30.0 + 6 * minute) for minute in range(MINUTES)]).is_flat


def test_a_slow_leak_shows_and_so_does_its_slope():
    found = growth([50.0 + 0.5 * minute for minute in range(MINUTES)])
    assert found.is_flat is False
    assert found.private_bytes_per_h == pytest.approx(30 * MIB)


def test_a_single_peak_is_no_leak():
    private = [50.0] * MINUTES
    private[-2] = 300.0
    assert growth(private).is_flat


def test_descriptors_of_what_is_warm_or_under_way_are_no_leak_and_a_rising_range_is():
    steady = [50.0] * MINUTES
    assert growth(steady, [20 + (minute * 7) % 30 for minute in range(MINUTES)]).is_flat
    assert growth(steady, [20 + minute for minute in range(MINUTES)]).is_flat is False
    assert growth(
        steady, [20 if minute < MINUTES // 2 and minute % 4 == 0 else 28 for minute in range(MINUTES)]
    ).is_flat


def test_a_short_run_allows_no_verdict():
    assert growth([50.0 + minute for minute in range(5)]).is_flat is None


def test_a_schedule_without_traces_is_the_same_for_the_same_seed_and_keeps_its_rate():
    models = [f"m{number}" for number in range(24)]
    schedule = zipf_schedule(models, SCALE, seed=3)
    assert schedule == zipf_schedule(models, SCALE, seed=3)
    assert schedule != zipf_schedule(models, SCALE, seed=4)
    assert schedule[-1].at_s == pytest.approx(399 / 0.5)
    assert all(each.at_s <= later.at_s for each, later in pairwise(schedule))
    counts = sorted((sum(ask.model == model for ask in schedule) for model in models), reverse=True)
    assert counts[0] > 4 * counts[11] > 0  # popular and rare ones
    assert all(4 <= ask.prompt_tokens <= 512 and 2 <= ask.num_tokens <= 64 for ask in schedule)


@pytest.mark.parametrize(
    ("groups", "mount", "limit_file"),
    [
        ("4:memory:/a/b\n0::/\n", "9 8 0:4 / {root}/memory rw - cgroup cgroup rw,memory\n", "memory.limit_in_bytes"),
        ("0::/a/b\n", "9 8 0:4 / {root}/memory rw - cgroup2 cgroup2 rw,nsdelegate\n", "memory.max"),
    ],
    ids=["version 1", "version 2"],
)
def test_the_limit_is_set_on_a_group_below_ones_own(tmp_path: Path, groups: str, mount: str, limit_file: str):
    own = tmp_path / "memory" / "a" / "b"
    own.mkdir(parents=True)
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "mountinfo").write_text(mount.format(root=tmp_path))
    with MemoryGroup(5 * MIB, proc=tmp_path) as group:
        (made,) = [path for path in own.iterdir() if path.is_dir()]
        assert (made / limit_file).read_text() == str(5 * MIB)
        assert group.place[-1] == f'echo $$ > {made}/cgroup.procs && exec "$0" "$@"'
        for file in made.iterdir():  # those of a real group go with it
            file.unlink()
    assert not made.exists()


@pytest.mark.parametrize(
    ("groups", "mounts", "limit_file", "limit"),
    [
        (
            "4:memory:/\n5:blkio:/a\n",
            "9 8 0:4 / {root}/memory rw - cgroup cgroup rw,memory\n"
            "9 8 0:5 / {root}/blkio rw - cgroup cgroup rw,blkio\n",
            "blkio/a/*/blkio.throttle.read_bps_device",
            "{device} 7000000",
        ),
        (
            "0::/\n",
            "9 8 0:4 / {root}/memory rw - cgroup2 cgroup2 rw,nsdelegate\n",
            "memory/*/io.max",
            "{device} rbps=7000000",
        ),
    ],
    ids=["version 1", "version 2"],
)
def test_reads_from_the_disk_are_limited_in_the_group_of_their_controller(
    tmp_path: Path, groups: str, mounts: str, limit_file: str, limit: str
):
    for folder in ("memory", "blkio/a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "mountinfo").write_text(mounts.format(root=tmp_path))
    reads = ReadLimit(tmp_path, 7_000_000)
    with MemoryGroup(5 * MIB, read_limit=reads, proc=tmp_path) as group:
        (file,) = tmp_path.glob(limit_file)
        assert file.read_text() == limit.format(device=reads.device)
        assert f"{file.parent}/cgroup.procs" in group.place[-1]
        for each in [*tmp_path.glob("memory/*/*"), *tmp_path.glob("blkio/a/*/*")]:
            each.unlink()
    assert not file.parent.exists()


def test_a_system_without_a_memory_controller_is_told_what_to_do(tmp_path: Path):
    (tmp_path / "cgroup").write_text("8:pids:/\n")
    (tmp_path / "mountinfo").write_text("")
    with pytest.raises(NoMemoryGroup, match="--no-limit"):
        MemoryGroup(MIB, proc=tmp_path)


def test_the_picture_is_xml_with_a_line_per_process():
    pool = [PoolUse(at_s=60.0 * minute, ledger_bytes=minute * MIB, num_runners=2, group=None) for minute in range(9)]
    tree = ElementTree.fromstring(memory_chart("<soak>", pool, samples([40.0] * 9), None))
    lines = tree.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
