"""A script that is called for every engine step or job, over a connection of its thread, past redis-py's client.

The client takes a connection from its pool, probes it, counts and retries around every command; that costs more than
the command itself. Here a broken connection is the caller's to try again; `RetriedScript` leaves that to the client.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import redis

from tasks.store.connection import Client, load_script


class ThreadConnections:
    """One connection for each thread that asks, for as long as the thread lives; then the next new thread gets it."""

    def __init__(self, client: Client) -> None:
        self._pool = client.connection_pool
        self._of_thread = threading.local()
        self._left: deque[Any] = deque()  # by threads that have ended

    def get(self) -> Any:
        """Connected.

        Not made by the pool: it counts every connection that it ever made, and refuses to make more than a hundred,
        however many of them are closed by now."""
        if not hasattr(self._of_thread, "loan"):
            self._of_thread.loan = _Loan(self._take(), self._left)
        connection = self._of_thread.loan.connection
        connection.connect()  # by itself a send would not ask the sentinels where to
        return connection

    def _take(self) -> Any:
        try:
            return self._left.pop()
        except IndexError:
            return self._pool.connection_class(**self._pool.connection_kwargs)


class _Loan:
    """A thread's connection, which goes back when the thread's own data is cleared. Thrown away instead it would cost
    each new thread a handshake, and leave redis-py's parser behind as garbage of cycles."""

    def __init__(self, connection: Any, left: deque[Any]) -> None:
        self.connection = connection
        self._left = left

    def __del__(self) -> None:
        self._left.append(self.connection)


class HotScript:
    def __init__(self, client: Client, name: str, connections: ThreadConnections | None = None) -> None:
        """`connections`: shared with other scripts that the same threads call."""
        self._script = load_script(client, name)
        self._connections = connections or ThreadConnections(client)

    def __call__(self, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        """The script's reply. Raises redis-py's errors; the next call connects again."""
        try:
            return self._call(keys, args)
        except redis.exceptions.NoScriptError:  # a new server
            self._script.registered_client.script_load(self._script.script)
            return self._call(keys, args)

    def _call(self, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        connection = self._connections.get()
        connection.send_command("EVALSHA", self._script.sha, len(keys), *keys, *args)
        return connection.read_response()


class RetriedScript(HotScript):
    """Over the thread's connection first, and with the client's retries where that is broken. For scripts that know a
    call which is sent again because its reply got lost."""

    def __call__(self, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        try:
            return super().__call__(keys, args)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError):
            return self._script(keys, args)
