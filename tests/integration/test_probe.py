"""When the AMX probe is asked, what its exit means, and that the answer is remembered."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workers.engine import probe

pytestmark = pytest.mark.integration

INTEL = "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile amx_int8\nbugs\t\t:\n"
OTHER = "processor\t: 0\nmodel name\t: not amx_tile either\nflags\t\t: fpu avx512f\n"


@pytest.fixture
def cpu(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(INTEL)
    return path


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bool | None]:
    """What the throwaway processes to come will say; each is used once."""
    queue: list[bool | None] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "survives_probe", lambda command: queue.pop(0))
    monkeypatch.setattr(probe, "file_type_of", lambda path: path.stem)
    return queue


def test_amx_is_read_from_the_flags_only(cpu: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.write_text(OTHER)
    assert probe.has_amx(cpu)
    assert not probe.has_amx(other)
    assert not probe.has_amx(tmp_path / "absent")


def test_unaffected_file_types_are_not_probed(cpu: Path, answers: list[bool | None]):
    assert probe.extra_buffers_are_safe(Path("F16"), cpu_info=cpu)


def test_answer_is_remembered_per_file_type(cpu: Path, answers: list[bool | None]):
    answers += [False, True]
    assert not probe.extra_buffers_are_safe(Path("Q8_0"), cpu_info=cpu)
    assert probe.extra_buffers_are_safe(Path("Q4_K_M"), cpu_info=cpu)
    assert not probe.extra_buffers_are_safe(Path("Q8_0"), cpu_info=cpu)
    assert not answers


def test_probe_that_proves_nothing_is_asked_again(cpu: Path, answers: list[bool | None]):
    answers += [None, False]
    assert probe.extra_buffers_are_safe(Path("Q8_0"), cpu_info=cpu)
    assert not probe.extra_buffers_are_safe(Path("Q8_0"), cpu_info=cpu)


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("pass", True),
        ("raise SystemExit(1)", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", None),
    ],
)
def test_only_a_fault_is_a_no(code: str, meaning: bool | None):
    assert probe.survives_probe([sys.executable, "-c", code]) is meaning
