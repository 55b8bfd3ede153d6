"""Write side of the token streams: one call per engine step carries the events of all its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.jobs import JobId
from tasks.store import keys
from tasks.store.connection import Client, translated
from tasks.store.hot_script import HotScript
from tasks.store.verdict import Verdict
from tasks.stream_events import Notice, NumberedEvent, encode_event


@dataclass(frozen=True, slots=True)
class Chunk:
    """One numbered event of one attempt."""

    job_id: JobId
    attempt: int
    seq: int
    event: NumberedEvent


class TokenWriter:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._append = HotScript(client, "append")

    @translated
    def append(self, chunks: Sequence[Chunk]) -> list[Verdict]:
        """Append and publish, fenced, in one script call. Safe to repeat after StoreUnavailable: a chunk that
        did get through is recognised by its number. At most one chunk per job."""
        script_keys: list[str] = []
        args: list[str | int | bytes] = []
        for chunk in chunks:
            script_keys += (keys.job(chunk.job_id), keys.stream(chunk.job_id))
            args += (chunk.attempt, chunk.seq, keys.live(chunk.job_id), encode_event(chunk.event))
        return [Verdict(verdict) for verdict in self._append(script_keys, args)]

    @translated
    def notify(self, job_ids: Sequence[JobId], notice: Notice) -> None:
        """Tell live readers something that needs no number and may be lost."""
        pipe = self._client.pipeline(transaction=False)
        payload = b"0 " + encode_event(notice)
        for job_id in job_ids:
            pipe.publish(keys.live(job_id), payload)
        pipe.execute()
