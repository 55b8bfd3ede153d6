"""Settings that only `keepwarm up` needs; the rest belongs to the processes that it starts."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.cli.render import remark
from app.settings import ApiSettings, is_loopback
from tasks.environment import unknown_settings
from tasks.errors import InvalidSetting
from tasks.settings import ENV_PREFIX


class UpSettings(BaseSettings):
    """What runs on this machine beside the API."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore")

    # Worker processes; None: one per GPU when models go to GPUs of which none is named, else one.
    workers: int | None = Field(default=None, ge=0, le=64)
    drain_s: float = Field(default=10.0, ge=0, le=600)  # of the workers at the end; then work is parked
    flower_port: int = Field(default=5555, ge=0, le=65535)  # 0 = no Flower
    flower_basic_auth: str | None = None  # user:password

    @field_validator("flower_basic_auth")
    @classmethod
    def _user_and_password(cls, value: str | None) -> str | None:
        if not value:
            return None
        user, _, password = value.partition(":")
        if not user or not password:
            raise ValueError("write it as user:password")
        return value


def remark_unknown(environment: Mapping[str, str]) -> None:
    """Say which variables nobody reads. The processes that are started say it in their logs."""
    for name, meant in unknown_settings(environment).items():
        remark(f"{name} is no setting and changes nothing." + (f" Did you mean {meant}?" if meant else ""))


def refuse_shared_budget(up: UpSettings, environment: Mapping[str, str]) -> None:
    """Each worker would take most of the same free memory. Raises InvalidSetting; nothing is over-committed."""
    if up.workers is not None and up.workers > 1 and not environment.get("KEEPWARM_MEMORY_BUDGET"):
        raise InvalidSetting(
            "KEEPWARM_MEMORY_BUDGET",
            f"{up.workers} workers share this machine's memory: say how much each may take, "
            "for example --memory-budget 4GiB",
        )


def refuse_open_flower(up: UpSettings, api: ApiSettings) -> None:
    """Flower shows every task to whoever reaches it. Raises InvalidSetting when that is everybody."""
    if up.flower_port and not up.flower_basic_auth and not is_loopback(api.host):
        raise InvalidSetting(
            "KEEPWARM_FLOWER_BASIC_AUTH",
            f"set it to user:password, because with KEEPWARM_HOST={api.host} other machines reach Flower too; "
            "or switch Flower off with --flower-port 0",
        )
