"""The embedded Valkey server as real processes: private, durable, single, gone with its supervisor."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.embedded_store import EmbeddedStore, StoreAnswer
from tasks.errors import InvalidSetting, StoreUnavailable
from tasks.lifeline import MARKER
from tasks.settings import StoreSettings

pytestmark = pytest.mark.integration
BOUND_S = 20.0


def await_that(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {BOUND_S} s for {what}"
        time.sleep(0.02)


class Servers:
    """Starts servers of one home and ends them all."""

    def __init__(self, home: Path) -> None:
        self.settings = StoreSettings(home=home)
        self.store = EmbeddedStore.of(self.settings)
        self.started: list[subprocess.Popen[str]] = []

    def spawn(self, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.embedded_store"],
            env={**os.environ, "KEEPWARM_HOME": str(self.settings.home), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def start(self, **env: str) -> subprocess.Popen[str]:
        process = self.spawn(**env)
        self.store.wait_until_ready(is_alive=lambda: process.poll() is None, timeout_s=BOUND_S)
        return process

    def command(self, *words: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(os.fspath(self.store.socket_path))
            connection.sendall((" ".join(words) + "\r\n").encode())
            return connection.recv(4096).decode()


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.delenv("KEEPWARM_REDIS_URL", raising=False)
    servers = Servers(tmp_path / "home")
    yield servers
    for process in servers.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_what_was_written_survives_a_stop_and_a_kill(servers: Servers) -> None:
    first = servers.start()
    servers.command("SET", "stopped", "1")
    first.terminate()
    assert first.wait(BOUND_S) == 0
    second = servers.start()
    servers.command("SET", "killed", "1")
    second.kill()
    second.wait(BOUND_S)
    servers.start()
    assert servers.command("EXISTS", "stopped", "killed") == ":2\r\n"


def test_only_the_user_can_reach_the_files_and_the_socket(servers: Servers) -> None:
    servers.start()
    assert stat.S_IMODE(servers.store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(servers.store.socket_path.stat().st_mode) == 0o700
    assert "port\r\n$1\r\n0" in servers.command("CONFIG", "GET", "port")
    assert servers.command("DEBUG", "SLEEP", "0").startswith("-ERR")


def test_a_second_server_on_the_same_folder_is_refused_with_the_pid(servers: Servers) -> None:
    first = servers.start()
    second = servers.spawn()
    output, _ = second.communicate(timeout=BOUND_S)
    assert second.returncode == 1
    assert f"pid {first.pid}" in output
    assert servers.store.answer() is StoreAnswer.READY


def test_the_holder_is_known_while_it_lives_and_only_then(servers: Servers) -> None:
    assert servers.store.holder() is None
    process = servers.start()
    holder = servers.store.holder()
    assert holder is not None
    assert (holder.pid, holder.is_supervised) == (process.pid, False)
    process.kill()
    process.wait(BOUND_S)
    assert servers.store.holder() is None


def test_a_server_left_behind_can_be_stopped(servers: Servers) -> None:
    process = servers.start()
    holder = servers.store.holder()
    assert holder is not None
    servers.store.stop(holder)
    assert process.wait(BOUND_S) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl exists only on Linux")
def test_the_server_ends_when_its_supervisor_is_killed(servers: Servers) -> None:
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.run([sys.executable, '-m', 'tasks.embedded_store'])",
        ],
        env={**os.environ, "KEEPWARM_HOME": str(servers.settings.home), MARKER: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    servers.store.wait_until_ready(is_alive=lambda: supervisor.poll() is None, timeout_s=BOUND_S)
    assert servers.store.holder() is not None
    supervisor.kill()
    supervisor.wait(BOUND_S)
    await_that(lambda: servers.store.holder() is None, "the server's end")


def test_a_damaged_log_stops_the_start_with_valkeys_own_words_and_can_be_repaired(servers: Servers) -> None:
    first = servers.start()
    for number in range(50):
        servers.command("SET", f"key{number}", "x" * 50)
    first.terminate()
    first.wait(BOUND_S)
    log = next(servers.store.folder.glob("appendonlydir/*.incr.aof"))
    content = bytearray(log.read_bytes())
    middle = content.index(b"*3", len(content) // 2)
    content[middle : middle + 2] = b"?!"
    log.write_bytes(content)

    damaged = servers.spawn()
    output, _ = damaged.communicate(timeout=BOUND_S)
    assert damaged.returncode == 1
    assert "Bad file format reading the append only file" in output
    with pytest.raises(StoreUnavailable, match="ended while it started"):
        servers.store.wait_until_ready(is_alive=lambda: damaged.poll() is None, timeout_s=BOUND_S)

    repair = subprocess.run(
        [sys.executable, "-m", "tasks.embedded_store", "--repair"],
        env={**os.environ, "KEEPWARM_HOME": str(servers.settings.home)},
        input="y\n",
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert repair.returncode == 0, repair.stdout + repair.stderr
    servers.start()
    assert servers.command("EXISTS", "key1") == ":1\r\n"


def test_a_home_that_is_too_long_for_a_socket_path_still_works(tmp_path: Path) -> None:
    servers = Servers(tmp_path / ("long" * 30))
    try:
        servers.start()
        assert not servers.store.socket_path.is_relative_to(servers.settings.home)
        assert stat.S_IMODE(servers.store.socket_path.parent.stat().st_mode) == 0o700
    finally:
        for process in servers.started:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=BOUND_S)


def test_a_store_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidSetting, match="KEEPWARM_HOME"):
        EmbeddedStore.of(StoreSettings(home=tmp_path)).prepare()
