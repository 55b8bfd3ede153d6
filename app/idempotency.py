"""The Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header-08): its syntax, and what it is compared with.

The same key with the same body on the same route attaches to the job of the first request, in whatever state it is;
with another body it is refused (422). A key is remembered for a day, or for as long as the job if that is longer.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from fastapi import Depends, Header
from pydantic import BaseModel, WithJsonSchema
from starlette.requests import Request

from tasks.errors import InvalidRequest

HEADER = "Idempotency-Key"
MAX_KEY_CHARS = 256

_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')  # an RFC 9651 string, as the draft has it
_BARE = re.compile(r"[!#-+\--~]+")  # as most clients send it: printable ASCII without space, quote and comma


def parse_key(values: list[str]) -> str | None:
    """The key of a request's header lines; None without any. Raises InvalidRequest for what is no key."""
    if not values:
        return None
    if len(values) > 1:
        raise InvalidRequest(f"{HEADER}: sent {len(values)} times; one key per request.", param=HEADER)
    text = values[0].strip(" \t")
    quoted = _QUOTED.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text if _BARE.fullmatch(text) else ""
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest(
            f"{HEADER}: must be 1 to {MAX_KEY_CHARS} printable ASCII characters, such as a UUID; in double quotes when "
            "it has spaces or commas.",
            param=HEADER,
        )
    return key


def choice_key(key: str, index: int) -> str:
    """Under which the job of one of several choices is admitted; no client can send the derived ones."""
    return key if index == 0 else f"{key}\n{index}"


def fingerprint(key: str | None, path: str, body: BaseModel) -> str | None:
    """What makes two requests under one key the same: the route and every field that counts, defaults included.

    None without a key."""
    if key is None:
        return None
    return hashlib.sha256(f"{path}\n{body.model_dump_json(warnings=False)}".encode()).hexdigest()


async def idempotency_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "pattern": f"^{_BARE.pattern}$", "maxLength": MAX_KEY_CHARS}),
        Header(description="A repeat of the request with the same key gets the same job."),
    ] = None,
) -> str | None:
    """Async, because FastAPI calls any other dependency in a thread."""
    return parse_key(request.headers.getlist(HEADER))


IdempotencyKey = Annotated[str | None, Depends(idempotency_key)]
