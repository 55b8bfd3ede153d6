"""The spare runner with real processes of the fake engine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.engine.base import EngineConfig
from workers.framing import FrameDecoder, FrameReader
from workers.messages import Ready
from workers.runner_launch import Child, ChildProcess, RunnerConfig
from workers.spare_runner import SpareRunner

LIMIT_S = 30


@pytest.fixture
def spare() -> Iterator[SpareRunner]:
    spare = SpareRunner("fake", keeps=True)
    yield spare
    spare.close()


def load(spare: SpareRunner, folder: Path, model: str = "m") -> Child:
    engine = EngineConfig(model_path=folder, context_length=64, slots=1, threads=1)
    process, connection = spare.start(
        RunnerConfig(model=model, engine=engine, log_path=folder / f"{model}.log", kind="fake")
    )
    connection.settimeout(LIMIT_S)
    assert any(isinstance(message, Ready) for message in FrameReader(connection, FrameDecoder()))
    return process, connection


def end(process: ChildProcess, connection: socket.socket) -> None:
    connection.close()
    assert process.wait(LIMIT_S) == 0


def spare_pid(spare: SpareRunner) -> int:
    assert spare._spare is not None
    return spare._spare[0].pid


def test_load_takes_the_spare_process_and_writes_to_its_own_log(spare: SpareRunner, tmp_path: Path) -> None:
    spare.replenish()
    waiting = spare_pid(spare)
    process, connection = load(spare, tmp_path)
    assert process.pid == waiting
    assert (tmp_path / "m.log").exists()
    end(process, connection)


def test_second_load_before_the_next_spare_starts_its_own_process(spare: SpareRunner, tmp_path: Path) -> None:
    spare.replenish()
    waiting = spare_pid(spare)
    children = [load(spare, tmp_path, model) for model in ("a", "b")]
    assert children[0][0].pid == waiting != children[1][0].pid
    for process, connection in children:
        end(process, connection)


def test_spare_that_died_is_replaced_at_the_load(spare: SpareRunner, tmp_path: Path) -> None:
    spare.replenish()
    assert spare._spare is not None
    dead = spare._spare[0]
    dead.kill()
    dead.wait(LIMIT_S)
    process, connection = load(spare, tmp_path)
    assert process.pid != dead.pid
    end(process, connection)


def test_closed_spare_is_gone_and_stays_away(tmp_path: Path) -> None:
    spare = SpareRunner("fake", keeps=True)
    spare.replenish()
    assert spare._spare is not None
    process = spare._spare[0]
    spare.close()
    assert process.poll() is not None
    spare.replenish()
    assert spare._spare is None
