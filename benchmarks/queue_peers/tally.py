"""What the task of every peer does: it counts, and says in the store when a round is complete."""

from __future__ import annotations

import os
import threading
from collections import Counter

import redis

SOCKET = os.environ.get("PEER_SOCKET", "")
DATABASE = 1  # Keepwarm has database 0
IN_FLIGHT = 32  # sends that an asynchronous producer has under way; threads or tasks of a worker

_lock = threading.Lock()
_counts: Counter[str] = Counter()


def text(round_name: str, index: int, total: int, size: int) -> str:
    """One payload of `size` bytes; it names its round and how many jobs that has."""
    return f"{round_name}:{total}:{index}:".ljust(size, "x")


def count(payload: str) -> None:
    """The task itself."""
    name, total, _, _ = payload.split(":", 3)
    with _lock:
        _counts[name] += 1
        if _counts[name] == int(total):
            client().lpush(f"bench:{name}", 1)


def await_round(round_name: str, limit_s: int) -> None:
    """Raises TimeoutError."""
    if client().blpop([f"bench:{round_name}"], timeout=limit_s) is None:
        raise TimeoutError(f"round {round_name} was not complete within {limit_s} s")


def client() -> redis.Redis:
    return redis.Redis(unix_socket_path=SOCKET, db=DATABASE, socket_timeout=None)


def url() -> str:
    return f"unix://{SOCKET}?db={DATABASE}"
