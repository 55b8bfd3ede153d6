"""Records of batches: create, read, list, cancel, and what a feeder writes under its fence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from tasks.attachments import NOTHING, Attachments, attachment_fields, decode_metadata
from tasks.batches import (
    MAX_BREAKS,
    WINDOW_MS,
    Batch,
    BatchCounts,
    BatchFigures,
    BatchState,
    LineError,
    new_batch_id,
    states_before,
)
from tasks.errors import BatchNotCancellable, BatchNotFound, TooManyBatches, UnknownPlace
from tasks.routing import BATCH_QUEUE
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import Client, load_script, now_ms, translated

BREAK_PAUSE_MS = 20_000  # after a feeder's first exception; in all five minutes: a file system may come back
SENT_AGAIN_MS = 10_000  # between two wake-ups of the same batch

_ERRORS = msgspec.json.Decoder(tuple[LineError, ...])
_COUNTS = msgspec.json.Decoder(BatchCounts)
_encode = msgspec.json.Encoder().encode


class BatchStore:
    def __init__(self, client: Client, settings: StoreSettings) -> None:
        self._client = client
        self._lease_ms = int(settings.lease_s * 1000)
        self._retention_ms = settings.file_retention_s * 1000
        self._max_open = settings.max_open_batches
        self._claim = load_script(client, "batch_claim")
        self._write = load_script(client, "batch_write")
        self._break = load_script(client, "batch_break")
        self._cancel = load_script(client, "batch_cancel")

    @translated
    def create(self, *, endpoint: str, input_file_id: str, attached: Attachments = NOTHING) -> Batch:
        """Write and index the record. The caller sends the wake-up. Raises TooManyBatches."""
        open_batches = self._client.zcard(keys.OPEN_BATCHES)
        if open_batches >= self._max_open:
            raise TooManyBatches(open_batches=open_batches, limit=self._max_open)
        now = now_ms(self._client)
        batch = Batch(
            id=new_batch_id(),
            state=BatchState.VALIDATING,
            endpoint=endpoint,
            input_file_id=input_file_id,
            created_ms=now,
            expires_ms=now + WINDOW_MS,
            metadata=attached.metadata,
        )
        fields: dict[str, Any] = {
            "state": batch.state.value,
            "endpoint": endpoint,
            "input_file": input_file_id,
            "created": now,
            "expires": batch.expires_ms,
        }
        fields |= attachment_fields(attached)
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(keys.batch(batch.id), mapping=fields)
        pipe.zadd(keys.BATCHES, {batch.id: now})
        pipe.zadd(keys.OPEN_BATCHES, {batch.id: now + SENT_AGAIN_MS})
        pipe.execute()
        return batch

    @translated
    def get(self, batch_id: str) -> Batch:
        """Raises BatchNotFound."""
        fields = self._client.hgetall(keys.batch(batch_id))
        if not fields:
            raise BatchNotFound(batch_id)
        return _batch(batch_id, fields)

    @translated
    def page(self, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Up to `limit` batches behind the one called `after`, newest first, and whether more follow.

        Raises UnknownPlace."""
        start = 0
        if after is not None:
            rank = self._client.zrevrank(keys.BATCHES, after)
            if rank is None:
                raise UnknownPlace(after)
            start = rank + 1
        found: list[Batch] = []
        while len(found) <= limit:
            ids = [raw.decode() for raw in self._client.zrevrange(keys.BATCHES, start, start + limit)]
            if not ids:
                break
            pipe = self._client.pipeline(transaction=False)
            for batch_id in ids:
                pipe.hgetall(keys.batch(batch_id))
            records = list(zip(ids, pipe.execute(), strict=True))
            found += [_batch(batch_id, fields) for batch_id, fields in records if fields]
            gone = [batch_id for batch_id, fields in records if not fields]
            if gone:
                self._client.zrem(keys.BATCHES, *gone)
            start += len(ids) - len(gone)
        return found[:limit], len(found) > limit

    def cancel(self, batch_id: str) -> Batch:
        """Ask the feeder to stop. Raises BatchNotFound, and BatchNotCancellable once the end has begun."""
        is_new = self._ask_to_cancel(batch_id)
        batch = self.get(batch_id)
        if not is_new and batch.state is not BatchState.CANCELLING:
            raise BatchNotCancellable(batch_id, batch.state.value)
        return batch

    @translated
    def _ask_to_cancel(self, batch_id: str) -> bool:
        before = " ".join(states_before(BatchState.CANCELLING))
        return bool(self._cancel(keys=[keys.batch(batch_id)], args=[before, BatchState.CANCELLING.value]))

    # ---- feeders

    @translated
    def claim(self, batch_id: str, feeder: str) -> int | None:
        """The fence of this feeder's writes, or None when another one feeds the batch or nothing is left to do."""
        epoch = self._claim(keys=[keys.batch(batch_id), keys.OPEN_BATCHES], args=[batch_id, feeder, self._lease_ms])
        return int(epoch) or None

    @translated
    def write(
        self,
        batch_id: str,
        epoch: int,
        *,
        to: BatchState | None = None,
        counts: BatchCounts | None = None,
        errors: tuple[LineError, ...] = (),
        model: str | None = None,
        output_file_id: str | None = None,
        error_file_id: str | None = None,
        in_flight: tuple[int, int] | None = None,
        is_released: bool = False,
    ) -> BatchState | None:
        """Renew the lease, note the progress, and move to another state if the table allows it.

        `in_flight`: lines that are under way, and how many may be.
        The state in which the batch is now; None when another feeder took over, and nothing was written."""
        fields: list[Any] = []
        for name, value in (
            ("counts", _encode(counts) if counts is not None else None),
            ("errors", _encode(errors) if errors else None),
            ("model", model),
            ("output_file", output_file_id),
            ("error_file", error_file_id),
            ("in_flight", None if in_flight is None else "{} {}".format(*in_flight)),
        ):
            if value is not None:
                fields += [name, value]
        state = self._write(
            keys=[keys.batch(batch_id), keys.OPEN_BATCHES, keys.OUTBOX, keys.BATCH_ENDS],
            args=[
                batch_id,
                epoch,
                0 if is_released else self._lease_ms,
                "" if to is None else to.value,
                "" if to is None else " ".join(states_before(to)),
                self._retention_ms if to is not None and to.is_terminal else 0,
                *fields,
            ],
        )
        return BatchState(state.decode()) if state else None

    @translated
    def note_break(self, batch_id: str, epoch: int, reason: str) -> int:
        """This feeder ended by an exception. How many did without progress in between; 0: another one took over."""
        break_keys = [keys.batch(batch_id), keys.OPEN_BATCHES]
        return int(self._break(keys=break_keys, args=[batch_id, epoch, BREAK_PAUSE_MS, MAX_BREAKS, reason]))

    # ---- the controller's sweep

    @translated
    def lost(self) -> list[str]:
        """Open batches that nobody feeds, as many as the queue has too few messages for them.

        Each is noted as woken, so that it is not found again for a while."""
        now = now_ms(self._client)
        due = self._client.zrangebyscore(keys.OPEN_BATCHES, "-inf", now)
        if not due:
            return []
        missing = due[: max(0, len(due) - self._client.llen(BATCH_QUEUE))]
        for batch_id in missing:
            self._client.zadd(keys.OPEN_BATCHES, {batch_id: now + SENT_AGAIN_MS}, xx=True)
        return [batch_id.decode() for batch_id in missing]

    @translated
    def open_input_files(self) -> dict[str, str]:
        """Input files that an open batch still needs → that batch."""
        ids = [raw.decode() for raw in self._client.zrange(keys.OPEN_BATCHES, 0, -1)]
        pipe = self._client.pipeline(transaction=False)
        for batch_id in ids:
            pipe.hget(keys.batch(batch_id), "input_file")
        found = zip(ids, pipe.execute(), strict=True)
        return {file_id.decode(): batch_id for batch_id, file_id in found if file_id is not None}

    @translated
    def figures(self) -> BatchFigures:
        """Reads the open batches, whose number is bounded."""
        pipe = self._client.pipeline(transaction=False)
        for raw in self._client.zrange(keys.OPEN_BATCHES, 0, -1):
            pipe.hmget(keys.batch(raw.decode()), "state", "counts", "in_flight", "created")
        pipe.hgetall(keys.BATCH_ENDS)
        *records, ended = pipe.execute()
        records = [record for record in records if record[0] is not None]
        counts = [BatchCounts() if record[1] is None else _COUNTS.decode(record[1]) for record in records]
        places = [tuple(map(int, record[2].split())) for record in records if record[2] is not None]
        lines = {
            "completed": sum(each.completed for each in counts),
            "failed": sum(each.failed for each in counts),
            "in_flight": sum(used for used, _ in places),
        }
        lines["waiting"] = max(0, sum(each.total for each in counts) - sum(lines.values()))
        oldest_ms = min((int(record[3]) for record in records), default=None)
        return BatchFigures(
            open=Counter(record[0].decode() for record in records),
            ended={state.decode(): int(count) for state, count in ended.items()},
            lines=lines,
            window=sum(size for _, size in places),
            oldest_age_s=0.0 if oldest_ms is None else (now_ms(self._client) - oldest_ms) / 1000,
        )

    @translated
    def is_open(self, batch_id: str) -> bool:
        return self._client.zscore(keys.OPEN_BATCHES, batch_id) is not None

    @translated
    def is_sweep_due(self, every_s: int) -> bool:
        """True once in every period, whoever asks."""
        return bool(self._client.set(keys.FILES_SWEPT, "1", nx=True, ex=every_s))


def _batch(batch_id: str, fields: Mapping[bytes, bytes]) -> Batch:
    def text(name: bytes) -> str | None:
        value = fields.get(name)
        return None if value is None else value.decode()

    return Batch(
        id=batch_id,
        state=BatchState(fields[b"state"].decode()),
        endpoint=fields[b"endpoint"].decode(),
        input_file_id=fields[b"input_file"].decode(),
        created_ms=int(fields[b"created"]),
        expires_ms=int(fields[b"expires"]),
        metadata=decode_metadata(fields.get(b"metadata")),
        model=text(b"model"),
        counts=_COUNTS.decode(fields[b"counts"]) if b"counts" in fields else BatchCounts(),
        errors=_ERRORS.decode(fields[b"errors"]) if b"errors" in fields else (),
        output_file_id=text(b"output_file"),
        error_file_id=text(b"error_file"),
        breaks=int(fields.get(b"breaks", 0)),
        broke_by=text(b"broke_by") or "",
        entered_ms={
            state: int(at_ms) for state in BatchState if (at_ms := fields.get(f"{state.value}_at".encode())) is not None
        },
    )
