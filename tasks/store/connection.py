"""Connections to Redis/Valkey, and the one place where its errors become ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import resources
from typing import Any, ParamSpec, TypeVar

import redis
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import ExponentialBackoff
from redis.commands.core import Script
from redis.retry import Retry

from tasks.errors import StoreUnavailable
from tasks.settings import StoreSettings

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 5.0
STREAM_PATIENCE_S = 30.0  # token streams bridge an absence of the store that is no longer, at both of their ends
HEALTH_CHECK_INTERVAL_S = 10  # a connection idle for longer is pinged before use

# redis.Redis and redis.asyncio.Redis. Their reply types are unions over every option at once, which no caller
# could narrow honestly; the stores annotate what they return instead.
Client = Any
AsyncClient = Any

# What a caller can only answer with "not now": gone, slow, loading its AOF, full, demoted to a replica.
_UNAVAILABLE = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    OSError,
)
_UNAVAILABLE_WORDS = (
    *("OOM", "READONLY", "MISCONF", "LOADING", "MASTERDOWN"),
    *("NOREPLICAS", "CLUSTERDOWN", "BUSY Redis", "BUSY Valkey"),
)

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn redis-py's errors for an unreachable or full server into StoreUnavailable."""
    try:
        yield
    except _UNAVAILABLE as error:
        raise StoreUnavailable(f"The store can't serve this right now: {error}") from error
    except redis.exceptions.ResponseError as error:
        # A script that met such a server reports it as a plain response error.
        if any(word in str(error) for word in _UNAVAILABLE_WORDS):
            raise StoreUnavailable(f"The store refuses writes: {error}") from error
        raise


def translated(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator form of `store_errors` for the public methods of a store."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with store_errors():
            return method(*args, **kwargs)

    return call


def connect(settings: StoreSettings) -> Client:
    """A thread-safe client with a connection pool. Replies are bytes. No connection is made yet."""
    options = {**_OPTIONS, "retry": Retry(ExponentialBackoff(base=0.05, cap=0.5), 2)}
    if (sentinels := settings.sentinels) is not None:
        finder: Any = redis.sentinel.Sentinel(sentinels.hosts, socket_timeout=CONNECT_TIMEOUT_S)  # type: ignore[no-untyped-call]
        return finder.master_for(sentinels.master, db=sentinels.db, password=sentinels.password, **options)
    return redis.Redis.from_url(settings.store_url, **options)


def connect_async(settings: StoreSettings, *, reply_timeout_s: float | None = REPLY_TIMEOUT_S) -> AsyncClient:
    """The same for asyncio. Without a reply timeout it may wait for messages for ever."""
    retry = redis.asyncio.retry.Retry(ExponentialBackoff(base=0.05, cap=0.5), 2)
    options = {**_OPTIONS, "socket_timeout": reply_timeout_s, "retry": retry}
    if (sentinels := settings.sentinels) is not None:
        finder: Any = redis.asyncio.sentinel.Sentinel(sentinels.hosts, socket_timeout=CONNECT_TIMEOUT_S)  # type: ignore[no-untyped-call]
        return finder.master_for(sentinels.master, db=sentinels.db, password=sentinels.password, **options)
    return redis.asyncio.Redis.from_url(settings.store_url, **options)


@translated
def ping(client: Client) -> None:
    """Raises StoreUnavailable unless the server answers."""
    client.ping()


def now_ms(client: Client) -> int:
    """The server's clock, which every time in the store is by."""
    return as_ms(client.time())


def as_ms(reply: tuple[int, int]) -> int:
    """The reply to TIME, seconds and microseconds, in milliseconds."""
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000


def load_script(client: Client, name: str) -> Script:
    """The script `lua/<name>.lua` behind the common prelude; sent by hash, loaded by the server on first use."""
    folder = resources.files("tasks.store") / "lua"
    source = (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
    script: Script = client.register_script(source)
    return script


_OPTIONS: dict[str, Any] = {
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "socket_timeout": REPLY_TIMEOUT_S,
    "health_check_interval": HEALTH_CHECK_INTERVAL_S,
    "protocol": 2,
}
