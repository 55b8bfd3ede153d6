"""The outbox: news that jobs and batches have ended, written by the scripts that end them, until it is delivered."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog

from tasks.attachments import decode_metadata, decode_webhook
from tasks.batches import BatchCounts
from tasks.jobs import JobId
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import Client, load_script, now_ms, translated
from tasks.stream_events import End, decode_numbered
from tasks.webhooks import DeadWebhook, Message, OutboxState

MAX_DEAD = 1000  # given up; beyond that the oldest ones go

_COUNTS = msgspec.json.Decoder(BatchCounts)
_DEAD = msgspec.json.Decoder(DeadWebhook)
_log = structlog.get_logger(__name__)
_BATCH = "batch_"  # how the ids of batches begin


class OutboxStore:
    def __init__(self, client: Client, settings: StoreSettings) -> None:
        self._client = client
        self._dead_ms = settings.dead_retention_s * 1000
        self._claim = load_script(client, "outbox_claim")
        self._settle = load_script(client, "outbox_settle")

    @translated
    def claim(self, count: int, lease_s: float) -> list[Message]:
        """Due messages, which nobody else gets before the lease ends. Settle each before that."""
        taken = self._claim(keys=[keys.OUTBOX], args=[count, int(lease_s * 1000)])
        messages = []
        for record_id, number, flat in taken:
            try:
                messages.append(_message(record_id.decode(), number, dict(zip(flat[::2], flat[1::2], strict=True))))
            except (msgspec.DecodeError, KeyError):  # by another version; nothing can be told of it, now or later
                _log.error("webhook_unreadable", id=record_id.decode())
                dead = DeadWebhook(
                    id=record_id.decode(), origin=None, state=None, ended_ms=None, attempts=number, reason="unreadable"
                )
                self._end_try(dead.id, number, "dead unreadable", None, dead)
        return messages

    def delivered(self, message: Message) -> bool:
        """False when another deliverer has taken the message over."""
        return self._end_try(message.id, message.number, "delivered", None)

    def failed(self, message: Message, reason: str, next_try_s: float) -> bool:
        return self._end_try(message.id, message.number, f"failed {reason}", next_try_s)

    def given_up(self, message: Message, reason: str) -> bool:
        dead = DeadWebhook(
            id=message.id,
            origin=message.webhook.origin,
            state=message.state,
            ended_ms=message.ended_ms,
            attempts=message.number,
            reason=reason,
        )
        return self._end_try(message.id, message.number, f"dead {reason}", None, dead)

    def put_back(self, message: Message, for_s: float) -> bool:
        """It was not sent; this try does not count."""
        return self._end_try(message.id, message.number, "", for_s)

    @translated
    def _end_try(
        self, record_id: str, number: int, count: str, next_try_s: float | None, dead: DeadWebhook | None = None
    ) -> bool:
        delay_ms = "" if next_try_s is None else int(next_try_s * 1000)
        return bool(
            self._settle(
                keys=[
                    keys.OUTBOX,
                    keys.message(record_id),
                    keys.OUTBOX_COUNTS,
                    keys.job(JobId(record_id)),
                    keys.DEAD_WEBHOOKS,
                    keys.DEAD_WEBHOOK_ENTRIES,
                ],
                args=[
                    record_id,
                    number,
                    count,
                    delay_ms,
                    b"" if dead is None else msgspec.json.encode(dead),
                    self._dead_ms,
                    MAX_DEAD,
                ],
            )
        )

    @translated
    def dead(self, limit: int) -> list[tuple[int, DeadWebhook]]:
        """Those that were given up, the newest first, each with the time of that in ms."""
        oldest_ms = now_ms(self._client) - self._dead_ms
        found = self._client.zrevrangebyscore(
            keys.DEAD_WEBHOOKS, "+inf", f"({oldest_ms}", start=0, num=limit, withscores=True
        )
        if not found:
            return []
        entries = self._client.hmget(keys.DEAD_WEBHOOK_ENTRIES, [record_id for record_id, _ in found])
        return [
            (int(given_up_ms), _DEAD.decode(entry))
            for (_, given_up_ms), entry in zip(found, entries, strict=True)
            if entry is not None  # it has just gone
        ]

    @translated
    def num_pending(self) -> int:
        return int(self._client.zcard(keys.OUTBOX))

    @translated
    def state(self) -> OutboxState:
        pipe = self._client.pipeline(transaction=False)
        pipe.zcard(keys.OUTBOX)
        pipe.zrange(keys.OUTBOX, 0, 0, withscores=True)
        pipe.hgetall(keys.OUTBOX_COUNTS)
        pending, head, counts = pipe.execute()
        overdue_ms = now_ms(self._client) - head[0][1] if head else 0
        return OutboxState(
            pending=pending,
            overdue_s=max(0, overdue_ms) / 1000,
            counts={name.decode(): int(count) for name, count in counts.items()},
        )


def _message(record_id: str, number: int, fields: Mapping[bytes, bytes]) -> Message:
    webhook = decode_webhook(fields[b"webhook"])
    assert webhook is not None
    end = decode_numbered(fields[b"event"]) if b"event" in fields else None
    is_batch = record_id.startswith(_BATCH)
    return Message(
        id=record_id,
        number=number,
        webhook=webhook,
        state=fields[b"state"].decode(),
        created_ms=int(fields[b"created"]),
        ended_ms=int(fields[b"ended"]),
        metadata=decode_metadata(fields.get(b"metadata")),
        model=_text(fields.get(b"model")),
        usage=end.usage if isinstance(end, End) else None,
        error_code=end.error.code if isinstance(end, End) and end.error is not None else None,
        counts=(_COUNTS.decode(fields[b"counts"]) if b"counts" in fields else BatchCounts()) if is_batch else None,
        output_file_id=_text(fields.get(b"output_file")),
        error_file_id=_text(fields.get(b"error_file")),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
