"""Settings that every process shares: where the state lives, which store, how long leases and records last.

Each package has one settings class, read from `KEEPWARM_*` variables: `StoreSettings` here, `app.settings.ApiSettings`,
`workers.settings.WorkerSettings`. A wrong value stops the start with the variable's name.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import InvalidSetting
from tasks.sentinel_url import SCHEME, SentinelUrl

ENV_PREFIX = "KEEPWARM_"
MAX_UNIX_SOCKET_PATH = 100  # bytes; the kernel's limit is 104 on macOS and 108 on Linux

_BYTE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _BYTE_UNITS[f"{_letter}ib"] = 1024**_power
    _BYTE_UNITS[f"{_letter}b"] = 1000**_power
    _BYTE_UNITS[_letter] = 1024**_power


def parse_bytes(text: object) -> object:
    """`2GiB`, `1500MB`, `64 G` (binary) or a plain number, as bytes; anything else raises ValueError."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _BYTE_UNITS:
        raise ValueError(f"{text!r} is no amount of memory; write it like 2GiB, 1500MB or 800000000")
    return int(float(match[1]) * _BYTE_UNITS[match[2].lower()])


Bytes = Annotated[int, BeforeValidator(parse_bytes)]

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load_settings(cls: type[SettingsT], **overrides: Any) -> SettingsT:
    """Read the class from the environment. Raises InvalidSetting that names the variable and what would be right."""
    try:
        return cls(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ENV_PREFIX + str(first["loc"][0]).upper() if first["loc"] else cls.__name__
        message = first["msg"].removeprefix("Value error, ")
        field = cls.model_fields.get(str(first["loc"][0])) if first["loc"] else None
        if field is not None and "Secret" in str(field.annotation):
            raise InvalidSetting(name, message) from None  # nobody repeats a secret
        raise InvalidSetting(name, f"{message} (got {first['input']!r})") from error


class StoreSettings(BaseSettings):
    """Store and protocol times. Seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore")

    home: Path = Path("~/.keepwarm")  # state and logs
    redis_url: str | None = None  # None: the embedded Valkey server of this home
    lease_s: float = Field(default=6.0, ge=0.5, le=600)  # an attempt without renewal is rescued after this
    max_attempts: int = Field(default=3, ge=1, le=100)
    retention_s: int = Field(default=3600, ge=10)  # terminal jobs and their streams are kept this long
    dead_retention_s: int = Field(default=7 * 24 * 3600, ge=10)  # and dead letters this long
    files_url: str | None = None  # where files lie, for fsspec, like file:///shared; None: in the home
    response_retention_s: int = Field(default=7 * 24 * 3600, ge=60)  # stored responses are kept this long
    max_responses: int = Field(default=50_000, ge=1)  # stored responses; beyond that the oldest ones go
    max_responses_bytes: Bytes = Field(default=128 * 1024**2, ge=1024)  # of them all; beyond that the oldest ones go
    file_retention_s: int = Field(default=30 * 24 * 3600, ge=60)  # files and ended batches are kept this long
    quarantine_s: int = Field(default=3600, ge=0)  # prompts and models that kill are kept away this long; 0 = never
    max_queue_per_model: int = Field(default=10_000, ge=1)
    max_queue_total: int = Field(default=50_000, ge=1)
    max_open_batches: int = Field(default=1000, ge=1)  # batches that have not ended
    cache_bytes: Bytes = 64 * 1024**2  # of cached answers of all models together; 0 = none is kept
    max_store_fill: float = Field(default=0.8, gt=0, le=1)  # admission stops when the store's memory is used so far

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: str | None) -> str | None:
        if not url:
            return None
        if urlsplit(url).scheme not in {"redis", "rediss", "unix", "redis+socket", "sentinel"}:
            raise ValueError(
                "use redis://HOST:PORT/DB, rediss://…, unix:///PATH or sentinel://HOST:PORT,…/DB?master=NAME "
                "(a Valkey server is reached with redis:// too)"
            )
        if url.startswith(f"{SCHEME}://"):
            SentinelUrl.parse(url)
        return url.replace("redis+socket://", "unix://", 1)

    @property
    def socket_path(self) -> Path:
        """Unix socket of the embedded server; in the temporary folder when the home's path is too long for one."""
        path = self.home / "store" / "valkey.sock"
        if len(os.fsencode(path)) <= MAX_UNIX_SOCKET_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"keepwarm-{os.getuid()}-{digest}" / "valkey.sock"

    @property
    def store_url(self) -> str:
        """URL for redis-py."""
        return self.redis_url or f"unix://{self.socket_path}"

    @property
    def sentinels(self) -> SentinelUrl | None:
        """How to find the store when sentinels know where it is."""
        url = self.store_url
        return SentinelUrl.parse(url) if url.startswith(f"{SCHEME}://") else None

    @property
    def broker_url(self) -> str:
        """The same server for kombu, which spells unix sockets and sentinels differently."""
        if self.sentinels is not None:
            return self.sentinels.for_kombu()
        return self.store_url.replace("unix://", "redis+socket://", 1)
