"""A script that is called for every engine step, over a connection of its own per thread, past redis-py's client.

The client takes a connection from its pool, probes it, counts and retries around every command; that costs more than
the command itself. Here a broken connection is the caller's to try again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import redis

from tasks.store.connection import Client, load_script


class HotScript:
    def __init__(self, client: Client, name: str) -> None:
        self._script = load_script(client, name)
        self._pool = client.connection_pool
        self._of_thread = threading.local()

    def __call__(self, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        """The script's reply. Raises redis-py's errors; the next call connects again."""
        try:
            return self._call(keys, args)
        except redis.exceptions.NoScriptError:  # a new server
            self._script.registered_client.script_load(self._script.script)
            return self._call(keys, args)

    def _call(self, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        connection = self._connection()
        connection.send_command("EVALSHA", self._script.sha, len(keys), *keys, *args)
        return connection.read_response()

    def _connection(self) -> Any:
        """Connected; closed with its thread.

        Not made by the pool: it counts every connection that it ever made, and refuses to make more than a hundred,
        however many of them are closed by now."""
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = self._pool.connection_class(**self._pool.connection_kwargs)
        self._of_thread.connection.connect()  # by itself a send would not ask the sentinels where to
        return self._of_thread.connection
