"""What must hold on this machine before anything is started: free ports, and a home that nobody else runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from tasks.errors import InvalidSetting, KeepwarmError


class AlreadyRunning(KeepwarmError):
    """Another `keepwarm up` runs on this home."""

    code = "already_running"

    def __init__(self, home: Path, pid: str) -> None:
        super().__init__(
            f"`keepwarm up` (pid {pid or 'unknown'}) already runs on {home}. "
            "Stop it first, or choose another home with --home."
        )


@contextlib.contextmanager
def sole_tenancy(home: Path) -> Iterator[None]:
    """Hold the home's lock. Raises AlreadyRunning with the pid of whoever has it, InvalidSetting for a bad home."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        descriptor = os.open(home / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidSetting("KEEPWARM_HOME", f"can't use {home}: {error.strerror} (--home)") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise AlreadyRunning(home, pid) from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def refuse_busy_port(host: str, port: int, *, variable: str, flag: str) -> None:
    """Raises InvalidSetting that names the port, who has it and the flag that changes it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if isinstance(error, socket.gaierror):
            raise InvalidSetting("KEEPWARM_HOST", f"{host!r} is no address of this machine") from error
        reason = f"is already in use{_by_whom(port)}" if is_listening(host, port) else str(error.strerror)
        raise InvalidSetting(variable, f"port {port} on {host} {reason}; choose another one with {flag}") from error


def free_port(host: str) -> int:
    """A port that nobody listens on right now."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.bind(address)
        port: int = probe.getsockname()[1]
        return port


def is_listening(host: str, port: int) -> bool:
    try:
        with socket.create_connection((reachable_host(host), port), timeout=0.5):
            return True
    except OSError:
        return False


def reachable_host(host: str) -> str:
    """Where this machine reaches what listens on `host`: all addresses include loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def http_url(host: str, port: int) -> str:
    host = reachable_host(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _by_whom(port: int) -> str:
    """` by NAME (pid N)`, as far as the system tells us."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
