"""What the cache of answers has done so far. Its protocol is part of admit.lua, claim.lua and finish.lua."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.answer_cache import CacheOutcome
from tasks.store import keys
from tasks.store.connection import Client, translated


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCounts:
    requests: Mapping[tuple[CacheOutcome, str], int] = field(default_factory=dict)  # by outcome and model
    evicted: int = 0  # answers that made room before their time was over
    answers: int = 0
    bytes: int = 0  # of the answers, with what the store needs to keep them


class AnswerStore:
    def __init__(self, client: Client) -> None:
        self._client = client

    @translated
    def counts(self) -> CacheCounts:
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(keys.CACHE_COUNTS)
        pipe.zcard(keys.ANSWERS_USED)
        fields, answers = pipe.execute()
        counts = {name.decode(): int(value) for name, value in fields.items()}
        return CacheCounts(
            evicted=counts.pop("evicted", 0),
            bytes=counts.pop("bytes", 0),
            answers=answers,
            requests={(CacheOutcome(name.split()[0]), name.split()[1]): count for name, count in counts.items()},
        )
