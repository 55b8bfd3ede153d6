"""Records of files. Their content is not in the store."""

from __future__ import annotations

from typing import Literal

import msgspec

from tasks.errors import FileMissing, FilesFull, UnknownPlace
from tasks.files import StoredFile
from tasks.store import keys
from tasks.store.connection import Client, load_script, now_ms, translated

_DECODER = msgspec.json.Decoder(StoredFile)
_ENCODER = msgspec.json.Encoder()


class FileStore:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._count_file = load_script(client, "count_file")

    @translated
    def now_ms(self) -> int:
        return now_ms(self._client)

    def add(self, file: StoredFile, *, max_total_bytes: int | None = None) -> None:
        """Record a file whose content is in place. Repeating it changes nothing.

        `max_total_bytes` bounds all files together: raises FilesFull. None for what must be kept in any case."""
        bound: list[int | str] = ["" if max_total_bytes is None else max_total_bytes]
        args = [_ENCODER.encode(file), file.bytes, file.created_ms, file.expires_ms, *bound]
        is_done, total = self._count(file.id, *args)
        if not is_done:
            raise FilesFull(total_bytes=total, limit=max_total_bytes or 0)

    def total_bytes(self) -> int:
        """Of all files that have a record."""
        return self._count("", "", 0, 0, 0, "")[1]

    @translated
    def _count(self, file_id: str, *args: bytes | int | str) -> tuple[bool, int]:
        file_keys = [keys.file(file_id), keys.FILES, keys.FILE_EXPIRY, keys.FILE_BYTES]
        is_done, total = self._count_file(keys=file_keys, args=[file_id, *args, keys.file("")])
        return bool(is_done), int(total)

    @translated
    def get(self, file_id: str) -> StoredFile:
        """Raises FileMissing."""
        payload = self._client.get(keys.file(file_id))
        if payload is None:
            raise FileMissing(file_id)
        return _DECODER.decode(payload)

    @translated
    def page(
        self, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
    ) -> tuple[list[StoredFile], bool]:
        """Up to `limit` files behind the one called `after`, and whether more follow. Raises UnknownPlace."""
        is_newest_first = order == "desc"
        start = 0
        if after is not None:
            rank = (self._client.zrevrank if is_newest_first else self._client.zrank)(keys.FILES, after)
            if rank is None:
                raise UnknownPlace(after)
            start = rank + 1
        found: list[StoredFile] = []
        while len(found) <= limit:
            ids = self._client.zrange(keys.FILES, start, start + limit, desc=is_newest_first)
            if not ids:
                break
            start += len(ids)
            payloads = self._client.mget([keys.file(file_id.decode()) for file_id in ids])
            files = [_DECODER.decode(payload) for payload in payloads if payload is not None]
            found += [file for file in files if purpose in (None, file.purpose)]
        return found[:limit], len(found) > limit

    def remove(self, file_id: str) -> None:
        """Forget a file. Its content goes afterwards: one without a record is swept, a record without one misleads."""
        self._count(file_id, "", 0, 0, 0, "")

    @translated
    def without_record(self, file_ids: list[str]) -> list[str]:
        """Those of the ids that no record has."""
        if not file_ids:
            return []
        found = self._client.zmscore(keys.FILES, file_ids)
        return [file_id for file_id, created_ms in zip(file_ids, found, strict=True) if created_ms is None]

    @translated
    def expired(self, limit: int) -> list[str]:
        return [raw.decode() for raw in self._client.zrangebyscore(keys.FILE_EXPIRY, "-inf", self.now_ms(), 0, limit)]
