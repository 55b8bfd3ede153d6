"""Turns on the cores, with real processes: record locks belong to a process, so threads could not play them."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers.engine import turnstile
from workers.engine.turnstile import Turnstile

LIMIT_S = 20
HOLD = """
import sys
from pathlib import Path
from workers.engine.turnstile import Turnstile
with Turnstile(Path(sys.argv[1]), cores=2, threads=int(sys.argv[2])):
    print("in", flush=True)
    sys.stdin.read()
print("out", flush=True)
"""


LOAD = """
import sys
from pathlib import Path
from workers.engine.turnstile import loading
with loading(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process at the turnstile, which leaves it when it is told."""

    def __init__(self, path: Path, threads: int, code: str = HOLD) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_in(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "in\n"

    def is_in_within(self, limit_s: float) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], limit_s)[0])

    def leave(self) -> None:
        self.process.communicate("", timeout=LIMIT_S)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[int], Holder]]:
    holders: list[Holder] = []

    def start(threads: int, code: str = HOLD) -> Holder:
        holders.append(Holder(tmp_path / "cores", threads, code))
        return holders[-1]

    before = signal.getsignal(signal.SIGALRM)
    yield start
    signal.signal(signal.SIGALRM, before)
    for holder in holders:
        holder.process.kill()
        holder.process.communicate()


def granted(turn: Turnstile) -> int:
    with turn as threads:
        return threads


def seconds_to_pass(turn: Turnstile) -> float:
    began = time.monotonic()
    with turn:
        return time.monotonic() - began


def test_step_waits_until_the_other_one_is_over(tmp_path: Path, hold: Callable[[int], Holder]) -> None:
    first = hold(2)
    first.wait_in()
    second = hold(2)
    assert not second.is_in_within(0.5)
    first.leave()
    second.wait_in()
    second.leave()


def test_cores_of_a_killed_process_are_free(tmp_path: Path, hold: Callable[[int], Holder]) -> None:
    holder = hold(2)
    holder.wait_in()
    holder.process.kill()
    holder.process.wait()
    assert seconds_to_pass(Turnstile(tmp_path / "cores", cores=2, threads=2)) < turnstile.PATIENCE_S / 2


def test_who_waited_in_vain_goes_on_and_does_not_ask_for_a_while(
    tmp_path: Path, hold: Callable[[int], Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "PATIENCE_S", 0.2)
    now_s = 0.0
    turn = Turnstile(tmp_path / "cores", cores=2, threads=2, monotonic_s=lambda: now_s)
    hung = hold(1)
    hung.wait_in()
    assert seconds_to_pass(turn) >= 0.2
    assert seconds_to_pass(turn) < 0.2
    now_s = turnstile.PAUSE_S
    hung.leave()
    assert seconds_to_pass(turn) < 0.2


def test_who_has_the_cores_may_take_them_again(tmp_path: Path, hold: Callable[[int], Holder]) -> None:
    turn = Turnstile(tmp_path / "cores", cores=2, threads=2)
    with turn:
        waiting = hold(2)
        with turn:
            pass
        assert not waiting.is_in_within(0.5)
    waiting.wait_in()
    waiting.leave()


def test_step_leaves_a_core_to_a_load(tmp_path: Path, hold: Callable[..., Holder]) -> None:
    turn = Turnstile(tmp_path / "cores", cores=2, threads=2)
    alone = Turnstile(tmp_path / "cores", cores=2, threads=1)
    threads = [granted(turn)]
    loads = [hold(2, code=LOAD), hold(2, code=LOAD)]
    for load in loads:
        load.wait_in()
        threads.append(granted(turn))
    threads.append(granted(alone))
    loads[0].leave()
    threads.append(granted(turn))
    loads[1].process.kill()
    loads[1].process.wait()
    threads.append(granted(turn))
    assert threads == [2, 1, 1, 1, 1, 2]


def test_cores_are_left_as_they_were_found(tmp_path: Path, hold: Callable[[int], Holder]) -> None:
    with Turnstile(tmp_path / "cores", cores=2, threads=2):
        waiting = hold(1)
        assert not waiting.is_in_within(0.5)
    waiting.wait_in()
    waiting.leave()
