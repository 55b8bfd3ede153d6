"""News that work has ended: what a webhook says, and when it is tried again. Pure: no store, no network, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from tasks.attachments import Webhook
from tasks.batches import BatchCounts
from tasks.generation import JsonObject
from tasks.jobs import Usage

# Between one failed try and the next: the example of the Standard Webhooks specification 1.0.0, "Deliverability and
# reliability"; in all three days.
RETRY_DELAYS_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
JITTER = 0.2  # of a delay, at most added to it, so that what failed together is not tried together again


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One entry of the outbox, taken for its `number`-th try."""

    id: str  # of the job or batch
    number: int
    webhook: Webhook
    state: str
    created_ms: int
    ended_ms: int
    metadata: dict[str, str] | None
    model: str | None = None  # of a job
    usage: Usage | None = None
    error_code: str | None = None
    counts: BatchCounts | None = None  # of a batch
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def kind(self) -> str:
        return "job" if self.counts is None else "batch"

    @property
    def event_id(self) -> str:
        """The same on every try: receivers tell repetitions by it. A record ends once, so its id will do."""
        return f"msg_{self.id}"


class DeadWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was given up. `origin`: where it was to go, without the path, which may hold a token."""

    id: str  # of the job or batch
    origin: str | None  # None: what another version wrote down can't be read
    state: str | None
    ended_ms: int | None
    attempts: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxState:
    pending: int
    overdue_s: float  # how long ago the one that is due for longest was to be sent
    counts: Mapping[str, int]  # tries by `delivered`, `failed <reason>`, `dead <reason>`


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver answered with a 2xx status."""


@dataclass(frozen=True, slots=True)
class NotDelivered:
    """`reason` is one of few words, for metrics; final: the receiver, or our own rule, wants no further try."""

    reason: str
    is_final: bool = False
    retry_after_s: float = 0.0  # asked for by the receiver


Outcome = Delivered | NotDelivered


def next_try_s(outcome: NotDelivered, tries: int, jitter: float, delays_s: tuple[float, ...]) -> float | None:
    """Seconds until the next try after so many failed ones; None: it is given up. `jitter` is drawn from 0 to 1."""
    if outcome.is_final or tries > len(delays_s):
        return None
    asked_s = min(outcome.retry_after_s, max(delays_s))
    return max(delays_s[tries - 1], asked_s) * (1 + JITTER * jitter)


class _Wording(msgspec.Struct, frozen=True, kw_only=True):
    """The order of the members, which are those of the specification, and what OpenAI's events have besides."""

    id: str
    object: str = "event"
    type: str
    created_at: int
    timestamp: str
    data: JsonObject


def wording(message: Message, ended_at: str) -> bytes:
    """The body, JSON: ids, state and counts, and neither prompt nor answer. `ended_at`: RFC 3339."""
    data: JsonObject = {"id": message.id, "object": message.kind}
    if message.counts is None:
        data |= {"state": message.state, "model": message.model, "error": None, "usage": None}
        if message.error_code is not None:
            data["error"] = {"code": message.error_code}
        if message.usage is not None:
            usage = message.usage
            data["usage"] = {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                "cached_tokens": usage.cached_tokens,
            }
    else:
        counts = message.counts
        data |= {
            "status": message.state,
            "request_counts": {"total": counts.total, "completed": counts.completed, "failed": counts.failed},
            "usage": {
                "input_tokens": counts.input_tokens,
                "output_tokens": counts.output_tokens,
                "total_tokens": counts.input_tokens + counts.output_tokens,
                "cached_tokens": counts.cached_tokens,
            },
            "output_file_id": message.output_file_id,
            "error_file_id": message.error_file_id,
        }
    data["created_at"] = message.created_ms // 1000
    data["metadata"] = message.metadata
    return msgspec.json.encode(
        _Wording(
            id=message.event_id,
            type=f"{message.kind}.{message.state}",
            created_at=message.ended_ms // 1000,
            timestamp=ended_at,
            data=data,
        )
    )
