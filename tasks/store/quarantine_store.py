"""Who is in quarantine, and the lost workers that may bring a model there. Admission and release look by themselves."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tasks.errors import NotQuarantined
from tasks.quarantine import LOSS_WINDOW_MS, Quarantine, Suspect, WorkerLoss
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import Client, now_ms, translated
from tasks.store.gauges import decode_service

MIN_PREFIX = len("prompt:") + 8  # the start of a digest that is enough to name it

_SUSPECT = msgspec.json.Decoder(Suspect)


class QuarantineStore:
    def __init__(self, client: Client, settings: StoreSettings) -> None:
        self._client = client
        self._quarantine_ms = settings.quarantine_s * 1000

    @translated
    def all(self) -> list[Quarantine]:
        """What is in quarantine now, the newest first."""
        now = now_ms(self._client)
        entries = [decode_entry(entry) for entry in self._client.hvals(keys.QUARANTINE)]
        current = [entry for entry in entries if entry.until_ms > now]
        return sorted(current, key=lambda entry: (-entry.since_ms, entry.id))

    @translated
    def is_idle(self) -> bool:
        """Nothing is in quarantine, and no lost worker is remembered."""
        pipe = self._client.pipeline(transaction=False)
        pipe.exists(keys.QUARANTINE)
        pipe.exists(keys.WORKER_LOSSES)
        return not any(pipe.execute())

    def models(self) -> dict[str, Quarantine]:
        """Quarantined models by id."""
        return {entry.suspect.model: entry for entry in self.all() if entry.suspect.kind == "model"}

    @translated
    def lift(self, suspect_id: str) -> Quarantine:
        """End a quarantine before its time; the start of a digest will do. A model's losses are forgotten with it.

        Raises NotQuarantined."""
        found = [
            entry
            for entry in self.all()
            if entry.id == suspect_id
            or (entry.suspect.kind == "prompt" and len(suspect_id) >= MIN_PREFIX and entry.id.startswith(suspect_id))
        ]
        if len(found) != 1:
            raise NotQuarantined(suspect_id)
        self._client.hdel(keys.QUARANTINE, found[0].id)
        return found[0]

    @translated
    def impose(self, suspect: Suspect) -> Quarantine | None:
        """Quarantine a model from now on, and start counting its losses anew. None: quarantine is switched off."""
        if not self._quarantine_ms:
            return None
        now = now_ms(self._client)
        entry = Quarantine(suspect=suspect, since_ms=now, until_ms=now + self._quarantine_ms)
        members = [member for member, loss in self._losses() if loss.model == suspect.model]
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(keys.QUARANTINE, entry.id, encode_entry(entry))
        if members:
            pipe.zrem(keys.WORKER_LOSSES, *members)
        pipe.execute()
        return entry

    @translated
    def release_expired(self) -> list[Quarantine]:
        """Those whose time is over; they are forgotten."""
        now = now_ms(self._client)
        entries = [decode_entry(entry) for entry in self._client.hvals(keys.QUARANTINE)]
        over = [entry for entry in entries if entry.until_ms <= now]
        if over:
            self._client.hdel(keys.QUARANTINE, *(entry.id for entry in over))
        return over

    @translated
    def losses(self) -> list[WorkerLoss]:
        """Lost workers of the last ten minutes."""
        self._client.zremrangebyscore(keys.WORKER_LOSSES, "-inf", now_ms(self._client) - LOSS_WINDOW_MS)
        return [loss for _, loss in self._losses()]

    @translated
    def add_loss(self, model: str, worker: str, busy_since_ms: int) -> None:
        """A worker vanished while it loaded the model."""
        self._client.zadd(keys.WORKER_LOSSES, {f"{model} {worker} {busy_since_ms}": now_ms(self._client)})

    @translated
    def succeeded_ms(self, models: Iterable[str]) -> dict[str, int]:
        """When a job of each model last succeeded; models without one are left out."""
        wanted = sorted(models)
        if not wanted:
            return {}
        values = zip(wanted, self._client.hmget(keys.SERVICE, wanted), strict=True)
        return {model: decode_service(value).measured_ms for model, value in values if value is not None}

    def _losses(self) -> list[tuple[bytes, WorkerLoss]]:
        found = []
        for member, lost_ms in self._client.zrange(keys.WORKER_LOSSES, 0, -1, withscores=True):
            model, worker, busy_since = member.decode().rsplit(" ", 2)
            loss = WorkerLoss(model=model, worker=worker, busy_since_ms=int(busy_since), lost_ms=int(lost_ms))
            found.append((member, loss))
        return found


def encode_entry(entry: Quarantine) -> bytes:
    """`<since ms> <until ms> <suspect>`: the times outside the JSON, where scripts read and write them."""
    return f"{entry.since_ms} {entry.until_ms} ".encode() + msgspec.json.encode(entry.suspect)


def decode_entry(payload: bytes) -> Quarantine:
    since_ms, until_ms, suspect = payload.split(b" ", 2)
    return Quarantine(suspect=_SUSPECT.decode(suspect), since_ms=int(since_ms), until_ms=int(until_ms))
