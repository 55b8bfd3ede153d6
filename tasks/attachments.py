"""What a client attaches to a job or a batch besides the work itself. Pure: nothing of it reaches an engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec


class Webhook(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where to say that the work has ended. The URL may hold a client's own token: show and log its origin alone."""

    url: str
    secret: str | None = None  # `whsec_…`, to sign with; None: the one of this installation

    @property
    def origin(self) -> str:
        try:
            parts = urlsplit(self.url)
        except ValueError:  # of another version: here such a URL is refused
            return "unreadable"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachments:
    metadata: dict[str, str] | None = None  # kept, returned, filtered by
    webhook: Webhook | None = None
    batch_id: str | None = None  # whose line the job answers


NOTHING = Attachments()

_WEBHOOK = msgspec.json.Decoder(Webhook)
_METADATA = msgspec.json.Decoder(dict[str, str])
_encode = msgspec.json.Encoder().encode


def attachment_fields(attached: Attachments) -> dict[str, bytes]:
    """As fields of a record; only those that were sent."""
    values = {"metadata": attached.metadata, "webhook": attached.webhook}
    fields = {name: _encode(value) for name, value in values.items() if value is not None}
    if attached.batch_id is not None:
        fields["batch"] = attached.batch_id.encode()
    return fields


def tags(*, metadata: Mapping[str, str] | None, batch_id: str | None) -> tuple[str, ...]:
    """Names of the indexes that hold the jobs with each of these pairs, and of this batch: digests, since what clients
    write does not belong into keys."""
    named = [f"metadata\0{name}\0{value}" for name, value in (metadata or {}).items()]
    if batch_id is not None:
        named.append(f"batch\0{batch_id}")
    return tuple(hashlib.sha256(name.encode()).hexdigest()[:32] for name in named)


def decode_metadata(field: bytes | None) -> dict[str, str] | None:
    return None if field is None else _METADATA.decode(field)


def decode_webhook(field: bytes | None) -> Webhook | None:
    return None if field is None else _WEBHOOK.decode(field)
