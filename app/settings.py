"""Settings of the HTTP front, read from `KEEPWARM_*` variables."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.webhooks.addresses import Reach
from app.webhooks.signing import parse_secret
from tasks.settings import ENV_PREFIX, Bytes


class ApiSettings(BaseSettings):
    """Seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore")

    allow_open: bool = False  # listen beyond loopback although nobody has to authenticate
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    flower_port: int = Field(default=5555, ge=0, le=65535)  # where the page at / says that Flower is; 0: nowhere
    # Names, comma-separated, in the Host header that the front answers to besides loopback's; none: on loopback no
    # others, elsewhere any.
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()

    max_connections: int = Field(default=4096, ge=1)  # open at once in one process; health checks have a few more
    max_head_bytes: Bytes = Field(default=64 * 1024, ge=1024)  # of a request's line and headers
    request_grace_s: float = Field(default=20.0, gt=0)  # for sending a head; for a body, 1 s more per 500 bytes of it
    client_stall_s: float = Field(default=60.0, gt=0)  # a client that takes nothing of its answer so long is cut off
    max_body_bytes: Bytes = Field(default=8 * 1024**2, ge=1024)
    max_file_bytes: Bytes = Field(default=200 * 1024**2, ge=1024)  # of one uploaded file
    max_files_bytes: Bytes = Field(default=10 * 1024**3, ge=1024)  # of all files together, when one is uploaded
    batch_window: int = Field(default=128, ge=1, le=1024)  # requests of one batch that wait or run at once
    max_messages: int = Field(default=4096, ge=1)
    max_tools: int = Field(default=128, ge=0)  # per request
    max_tools_bytes: Bytes = Field(default=256 * 1024, ge=0)  # of the schemas of a request's tools together
    max_choices: int = Field(default=16, ge=1)  # n
    max_stop: int = Field(default=8, ge=0)  # stop strings per request
    max_stop_chars: int = Field(default=256, ge=1)  # length of one stop string
    max_logit_bias: int = Field(default=1024, ge=0)  # entries
    max_schema_bytes: Bytes = Field(default=64 * 1024, ge=0)  # of a JSON schema or grammar
    max_schema_depth: int = Field(default=64, ge=1)  # objects and arrays in each other

    store_responses: bool = True  # what `store` of /v1/responses is by default
    max_response_chain: int = Field(default=256, ge=1)  # responses in one conversation (previous_response_id)

    max_inputs: int = Field(default=2048, ge=1)  # texts to embed, or documents to rank, per request
    max_result_bytes: Bytes = Field(default=16 * 1024**2, ge=1024)  # vectors of one request

    sync_timeout_s: float = Field(default=600.0, gt=0)  # a waiting (not streaming) request gives up after this
    hold_back_s: float = Field(default=0.9, ge=0)  # a stream's status waits this long for the first event
    prompt_check_s: float = Field(default=2.0, ge=0)  # POST /v1/jobs waits this long for a doubtful prompt's count
    max_wait_s: float = Field(default=60.0, ge=0)  # longest ?wait= of GET /v1/jobs/{id}
    keep_alive_s: float = Field(default=10.0, gt=0)  # longest silence on a stream
    fleet_cache_ms: int = Field(default=250, ge=0)  # age at which the view of the fleet is read anew

    webhook_secret: SecretStr | None = None  # whsec_…; several, by spaces or commas, while one is replaced
    # Names, addresses and CIDR blocks, comma-separated, that webhooks may go to besides the public Internet.
    webhook_allow: Annotated[tuple[str, ...], NoDecode] = ()
    webhook_timeout_s: float = Field(default=20.0, gt=0, le=300)  # of one try, all in all
    max_webhooks: int = Field(default=10_000, ge=1)  # that wait to be delivered, when work with another one comes

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """To sign with: the newest secret first."""
        secrets = self.webhook_secret.get_secret_value() if self.webhook_secret is not None else ""
        return tuple(parse_secret(secret) for secret in secrets.replace(",", " ").split())

    @property
    def webhook_reach(self) -> Reach:
        return Reach.parse(self.webhook_allow)

    @field_validator("webhook_secret")
    @classmethod
    def _well_formed(cls, secrets: SecretStr | None) -> SecretStr | None:
        for secret in (secrets.get_secret_value() if secrets is not None else "").replace(",", " ").split():
            parse_secret(secret)
        return secrets

    @field_validator("webhook_allow")
    @classmethod
    def _hosts_or_networks(cls, items: tuple[str, ...]) -> tuple[str, ...]:
        Reach.parse(items)
        return items

    @field_validator("allowed_hosts", "webhook_allow", mode="before")
    @classmethod
    def _split(cls, names: object) -> object:
        return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names

    @field_validator("host")
    @classmethod
    def _loopback_unless_allowed(cls, host: str, info: ValidationInfo) -> str:
        if is_loopback(host) or info.data.get("allow_open"):
            return host
        raise ValueError(
            "this address can be reached from other machines and there are no API keys yet; "
            "listen on 127.0.0.1, or set KEEPWARM_ALLOW_OPEN=1 where only trusted peers reach it"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name other than localhost counts as open."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
