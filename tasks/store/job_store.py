"""Job records: read them, end them before a worker took them. Synchronous; async callers use a thread."""

from __future__ import annotations

import msgspec

from tasks.errors import JobNotFound
from tasks.job_request import JobRequest, decode_request
from tasks.jobs import Job, JobError, JobId, JobState, Priority, WorkerId
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import Client, load_script, translated
from tasks.store.fleet_store import SCORE_PER_PRIORITY
from tasks.store.records import FIELDS, job_of
from tasks.stream_events import End, encode_event


class JobStore:
    def __init__(self, client: Client, settings: StoreSettings) -> None:
        self._client = client
        self._retention_ms = settings.retention_s * 1000
        self._dead_retention_ms = settings.dead_retention_s * 1000
        self._end_unclaimed = load_script(client, "end_unclaimed")
        self._hand_over = load_script(client, "hand_over")
        self._leave = load_script(client, "leave")

    @translated
    def get(self, job_id: JobId) -> Job:
        """Raises JobNotFound."""
        job = job_of(job_id, self._client.hmget(keys.job(job_id), FIELDS))
        if job is None:
            raise JobNotFound(job_id)
        return job

    @translated
    def request_of(self, job_id: JobId) -> JobRequest:
        """What the job asks for. Raises JobNotFound."""
        payload = self._client.hget(keys.job(job_id), "request")
        if payload is None:
            raise JobNotFound(job_id)
        return decode_request(payload)

    @translated
    def position(self, job: Job) -> int | None:
        """Jobs of the same model before this one; None when it no longer waits."""
        rank = self._client.zrank(keys.waiting(job.model), job.id)
        return None if rank is None else int(rank)

    @translated
    def ahead(self, model: str, priority: Priority) -> int:
        """How many waiting jobs a new one of this priority would stand behind."""
        return int(self._client.zcount(keys.waiting(model), "-inf", f"({(priority + 1) * SCORE_PER_PRIORITY}"))

    def cancel(self, job_id: JobId) -> Job:
        """End a waiting job at once; ask the worker of a running one. Terminal jobs stay as they are.

        Raises JobNotFound."""
        self._end(job_id, JobState.CANCELLED, None, flag_running=True)
        return self.get(job_id)

    @translated
    def leave(self, job_id: JobId, client: JobId) -> None:
        """A client of a job that others may wait for too no longer does; the last one ends it. `client`: the id under
        which it asked."""
        if self._leave(keys=[keys.job(job_id)], args=[client]):
            self.cancel(job_id)

    def end_waiting(self, job_id: JobId, state: JobState, error: JobError) -> None:
        """Expire or fail a job that no worker took; does nothing when one just did."""
        self._end(job_id, state, error, flag_running=False)

    @translated
    def _end(self, job_id: JobId, state: JobState, error: JobError | None, *, flag_running: bool) -> None:
        found, worker = self._end_unclaimed(
            keys=[
                keys.job(job_id),
                keys.stream(job_id),
                keys.QUEUED,
                keys.DEADLINES,
                keys.DEAD,
                keys.OUTBOX,
                keys.response(job_id),
                keys.RESPONSE_BYTES,
            ],
            args=[
                job_id,
                keys.live(job_id),
                state.value,
                encode_event(End(state=state, error=error)),
                b"" if error is None else msgspec.json.encode(error),
                self._dead_retention_ms if state is JobState.FAILED else self._retention_ms,
                "1" if flag_running else "0",
                keys.waiting(""),
            ],
        )
        if not found:
            raise JobNotFound(job_id)
        if flag_running and found == b"running":
            self._client.publish(keys.hints(WorkerId(worker.decode())), f"cancel {job_id}")

    @translated
    def hand_over(self, job_id: JobId, model: str, target: str) -> Priority | None:
        """Move a waiting job without a published token to another model, once in its life. The caller wakes it.

        None when it is not there to move."""
        priority = self._hand_over(
            keys=[keys.job(job_id), keys.waiting(model), keys.waiting(target), keys.WAITING_MODELS, keys.QUEUED],
            args=[job_id, target],
        )
        return None if priority is None else Priority(priority)
