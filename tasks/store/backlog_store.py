"""The backlog as sweeps and notices need it: who waits, whose wake-up got lost, whose deadline passed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.jobs import JobId, Priority
from tasks.routing import model_queue
from tasks.store import keys
from tasks.store.connection import Client, as_ms, load_script, now_ms, translated
from tasks.store.fleet_store import SCORE_PER_PRIORITY, WORKER_TTL_MS

# kombu keeps priority p > 0 of a queue in the list `queue\x06\x16p` (kombu.transport.redis, `sep`).
TRANSPORT_SEPARATOR = "\x06\x16"
LOST_AFTER_MS = 3_000  # a message is popped and claimed well within this time
RESEND_LIMIT = 200  # per model and tick
USELESS_WAKEUPS = 500  # per model, a kilobyte each; a sweep takes out as many or more, and refusals make fewer
MAX_DEAD_LETTERS = 1000  # each keeps its prompt and its text in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a sweep would find something in; most of the time that is nothing."""

    now_ms: int
    leases: bool
    lines: bool  # jobs wait, whose wake-ups may be lost
    deadlines: bool
    workers: bool  # that are silent
    batches: bool


class BacklogStore:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._tend_line = load_script(client, "tend_line")

    @translated
    def due(self) -> Due:
        """One look at the head of every index that sweeps go through."""
        pipe = self._client.pipeline(transaction=False)
        pipe.time()
        pipe.exists(keys.WAITING_MODELS)
        for index in (keys.RUNNING, keys.DEADLINES, keys.WORKERS_SEEN, keys.OPEN_BATCHES):
            pipe.zrange(index, 0, 0, withscores=True)
        time, lines, *heads = pipe.execute()
        now = as_ms(time)
        lease_ms, deadline_ms, seen_ms, batch_ms = (head[0][1] if head else math.inf for head in heads)
        return Due(
            now_ms=now,
            leases=lease_ms <= now,
            lines=bool(lines),
            deadlines=deadline_ms <= now,
            workers=seen_ms < now - WORKER_TTL_MS,
            batches=batch_ms <= now,
        )

    @translated
    def lost(self) -> list[tuple[JobId, str, Priority]]:
        """Queued jobs to wake again: per model as many as the transport's lists miss, those woken longest ago first.
        On the way, wake-ups that nobody needs are taken out of these lists where they pile up.

        Too many is harmless: a second wake-up finds the job taken."""
        found = []
        for model in sorted(raw.decode() for raw in self._client.smembers(keys.WAITING_MODELS)):
            lists = [_transport_list(model, priority) for priority in Priority]
            waiting, wakeups = self._tend_line(
                keys=[keys.waiting(model), keys.WAITING_MODELS, keys.QUEUED, *lists], args=[model, USELESS_WAKEUPS]
            )
            if waiting > wakeups:
                found += self._oldest_woken(model, min(waiting - wakeups, RESEND_LIMIT))
        return found

    def _oldest_woken(self, model: str, count: int) -> list[tuple[JobId, str, Priority]]:
        jobs = self._client.zrange(keys.waiting(model), 0, -1, withscores=True)
        if not jobs:  # by now they have all been claimed
            return []
        long_ago = now_ms(self._client) - LOST_AFTER_MS
        woken = self._client.zmscore(keys.QUEUED, [job_id for job_id, _ in jobs])
        overdue = sorted(
            (woken_ms, job_id.decode(), Priority(int(score) // SCORE_PER_PRIORITY))
            for (job_id, score), woken_ms in zip(jobs, woken, strict=True)
            if woken_ms is not None and woken_ms < long_ago
        )
        return [(JobId(job_id), model, priority) for _, job_id, priority in overdue[:count]]

    @translated
    def mark_woken(self, job_id: JobId) -> None:
        """Note the time of a repeated wake-up, if the job still waits."""
        self._client.zadd(keys.QUEUED, {job_id: now_ms(self._client)}, xx=True)

    @translated
    def late(self, limit: int) -> list[JobId]:
        """Open jobs whose deadline has passed."""
        ids = self._client.zrangebyscore(keys.DEADLINES, "-inf", now_ms(self._client), 0, limit)
        return [JobId(job_id.decode()) for job_id in ids]

    @translated
    def waiting(self, model: str, limit: int) -> list[JobId]:
        """The first of the model's line."""
        return [JobId(job_id.decode()) for job_id in self._client.zrange(keys.waiting(model), 0, limit - 1)]

    @translated
    def trim_index(self, older_than_ms: int) -> None:
        """Drop the ids of long gone jobs from the list of all jobs."""
        self._client.zremrangebyscore(keys.JOBS, "-inf", now_ms(self._client) - older_than_ms)

    @translated
    def trim_dead(self, older_than_ms: int, retention_ms: int) -> int:
        """Forget dead letters past their retention, and those beyond the bound, whose records get the plain
        retention. How many were beyond."""
        self._client.zremrangebyscore(keys.DEAD, "-inf", now_ms(self._client) - older_than_ms)
        beyond = [JobId(job_id.decode()) for job_id in self._client.zrange(keys.DEAD, 0, -1 - MAX_DEAD_LETTERS)]
        if beyond:
            pipe = self._client.pipeline(transaction=False)
            for job_id in beyond:
                pipe.pexpire(keys.job(job_id), retention_ms, lt=True)
                pipe.pexpire(keys.stream(job_id), retention_ms, lt=True)
            pipe.zrem(keys.DEAD, *beyond)
            pipe.execute()
        return len(beyond)


def _transport_list(model: str, priority: Priority) -> str:
    queue = model_queue(model)
    return queue if priority == 0 else f"{queue}{TRANSPORT_SEPARATOR}{int(priority)}"
