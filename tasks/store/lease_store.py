"""Attempts: claim a job under a lease, keep the lease, end or return the job. Every write is fenced."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from tasks.job_request import decode_request
from tasks.jobs import JobError, JobId, JobResult, JobState, Priority, WorkerId
from tasks.ports import Attempt
from tasks.quarantine import MAX_RUNNER_LOSSES, PROMPT_QUARANTINED, Suspect, speaks_against_prompt
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import Client, load_script, translated
from tasks.store.hot_script import RetriedScript, ThreadConnections
from tasks.store.quarantine_store import decode_entry
from tasks.store.token_writer import Chunk
from tasks.store.verdict import Verdict
from tasks.stream_events import End, Reset, Tokens, Vectors, decode_numbered, encode_event

_log = structlog.get_logger(__name__)


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A job that went back to its queue and needs a wake-up."""

    model: str
    priority: Priority


class Published(NamedTuple):
    """What earlier attempts of a job published: where a new one goes on."""

    ids: tuple[int, ...] = ()
    text: str = ""
    rows: int = 0


class JobIsLate(Exception):
    """The deadline passed before an attempt began; the caller ends the job as expired."""


class JobIsQuarantined(Exception):
    """Its request was quarantined while it waited; the caller ends the job with this error."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


class JobIsUnreadable(Exception):
    """Its record can't be decoded, now or later; the caller ends attempt `number` with this error."""

    def __init__(self, number: int, error: JobError) -> None:
        super().__init__(error.message)
        self.number = number
        self.error = error


class LeaseStore:
    def __init__(self, client: Client, settings: StoreSettings) -> None:
        self._client = client
        self._lease_ms = int(settings.lease_s * 1000)
        self._max_attempts = settings.max_attempts
        self._cache_bytes = settings.cache_bytes
        self._retention_ms = settings.retention_s * 1000
        self._dead_retention_ms = settings.dead_retention_s * 1000
        self._quarantine_ms = settings.quarantine_s * 1000
        connections = ThreadConnections(client)
        self._claim = RetriedScript(client, "claim", connections)
        self._renew = load_script(client, "renew")
        self._finish = RetriedScript(client, "finish", connections)
        self._release = load_script(client, "release")
        self._disown = load_script(client, "disown")
        self._expired = load_script(client, "expired")

    @translated
    def claim(
        self,
        job_id: JobId,
        model: str,
        worker: WorkerId,
        fingerprint: str = "",
        *,
        runner_model: str | None = None,
    ) -> Attempt | None:
        """Start the next attempt, with what earlier ones published. None when the job is not there to take
        (a duplicate wake-up, a cancelled job), or has to wait until another suspect was tried.

        `fingerprint`: of the model as the worker has it; of another one than was promised no answer is cached.
        `runner_model`: whose runner will run it; None: its own. Raises JobIsLate, JobIsQuarantined, JobIsUnreadable."""
        verdict, *rest = self._claim(
            keys=[keys.job(job_id), keys.waiting(model), keys.QUEUED, keys.RUNNING, keys.QUARANTINE, keys.PROBATION],
            args=[
                job_id,
                worker,
                self._lease_ms,
                secrets.token_hex(8),
                keys.live(job_id),
                fingerprint,
                runner_model or model,
            ],
        )
        if verdict == b"late":
            raise JobIsLate(job_id)
        if verdict == b"quarantined":
            raise JobIsQuarantined(JobError(code=PROMPT_QUARANTINED, message=decode_entry(rest[0]).suspect.reason))
        if verdict != b"claimed":
            return None
        number, seq, payload, deadline = rest
        try:
            request, published = decode_request(payload), self._published(job_id) if seq else Published()
        except msgspec.DecodeError as error:
            raise JobIsUnreadable(number, _unreadable(error)) from None
        return Attempt(
            job_id=job_id,
            number=number,
            model=model,
            request=request,
            last_seq=seq,
            forced_ids=published.ids,
            emitted_text=published.text,
            deadline_ms=int(deadline) if deadline else None,
            published_rows=published.rows,
        )

    def _published(self, job_id: JobId) -> Published:
        """Everything since the last reset: the prefix that a new attempt continues."""
        ids: list[int] = []
        text: list[str] = []
        rows = 0
        for _, fields in self._client.xrange(keys.stream(job_id)):
            match decode_numbered(fields[b"e"]):
                case Tokens() as tokens:
                    ids += tokens.ids
                    text.append(tokens.text)
                case Vectors() as vectors:
                    rows += len(vectors.rows)
                case Reset():
                    ids, text, rows = [], [], 0
                case End():
                    break
        return Published(tuple(ids), "".join(text), rows)

    @translated
    def renew(self, attempts: Sequence[tuple[JobId, int]]) -> list[Verdict]:
        """Prolong the leases of these (job, attempt number) pairs by a full lease from now."""
        if not attempts:
            return []
        verdicts = self._renew(
            keys=[keys.RUNNING, *(keys.job(job_id) for job_id, _ in attempts)],
            args=[self._lease_ms, *(value for pair in attempts for value in pair)],
        )
        return [Verdict(verdict) for verdict in verdicts]

    @translated
    def finish(
        self,
        job_id: JobId,
        number: int,
        state: JobState,
        *,
        result: JobResult | None = None,
        error: JobError | None = None,
        tail: Chunk | None = None,
    ) -> bool:
        """Write the terminal state and the closing event; False when the attempt no longer owns the job.

        `tail`: what is still to be published before the closing event."""
        event = End(
            state=state,
            finish_reason=result.finish_reason if result else None,
            usage=result.usage if result else None,
            error=error,
        )
        return bool(
            self._finish(
                keys=[
                    keys.job(job_id),
                    keys.stream(job_id),
                    keys.RUNNING,
                    keys.DEADLINES,
                    keys.SERVICE,
                    keys.OUTBOX,
                    keys.response(job_id),
                    keys.answer(""),
                    keys.ANSWERS_USED,
                    keys.ANSWERS_EXPIRY,
                    keys.ANSWER_BYTES,
                    keys.CACHE_COUNTS,
                    keys.RESPONSE_BYTES,
                ],
                args=[
                    job_id,
                    number,
                    keys.live(job_id),
                    state.value,
                    encode_event(event),
                    _json(result),
                    _json(error),
                    self._retention_ms,
                    self._cache_bytes,
                    *(("", "") if tail is None else (tail.seq, encode_event(tail.event))),
                ],
            )
        )

    def release(self, job_id: JobId, number: int, *, failure: JobError | None, company: int = 0) -> Released | None:
        """Return the job to its queue. With a failure the attempt counts, and the last one ends the job as failed.

        `company`: how many other attempts broke with the same runner, so that any of them may be to blame.
        None when nothing is to be woken: the job failed for good, was to be cancelled and is now, or is no longer
        ours."""
        return self._return_to_queue(job_id, number, failure=failure, only_expired=False, company=company)

    @translated
    def expired(self, limit: int) -> list[tuple[JobId, int, WorkerId]]:
        """Running jobs whose lease has ended by the store's time, with attempt and owner."""
        flat = self._expired(keys=[keys.RUNNING], args=[limit, keys.job(JobId(""))])
        rows = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        return [(JobId(job_id.decode()), int(number), WorkerId(worker.decode())) for job_id, number, worker in rows]

    @translated
    def disown(self, worker: WorkerId) -> int:
        """End the leases of a worker that is known to be dead, so that the next sweep returns its jobs; how many."""
        return int(self._disown(keys=[keys.RUNNING], args=[worker, keys.job(JobId(""))]))

    def rescue(self, job_id: JobId, number: int, worker: WorkerId) -> Released | None:
        """Return a job whose lease ended to its queue; checked again inside the script."""
        failure = JobError(
            code="worker_lost",
            message=f"Worker {worker} stopped renewing its lease; the last of {self._max_attempts} attempts broke.",
        )
        return self._return_to_queue(job_id, number, failure=failure, only_expired=True)

    @translated
    def _return_to_queue(
        self, job_id: JobId, number: int, *, failure: JobError | None, only_expired: bool, company: int = 0
    ) -> Released | None:
        model, digest = self._client.hmget(keys.job(job_id), "model", "digest")
        if model is None:
            return None
        verdict, *rest = self._release(
            keys=[
                keys.job(job_id),
                keys.stream(job_id),
                keys.waiting(model.decode()),
                keys.WAITING_MODELS,
                keys.QUEUED,
                keys.RUNNING,
                keys.DEADLINES,
                keys.DEAD,
                keys.QUARANTINE,
                keys.WORKER_LOSSES,
                keys.PROBATION,
                keys.BROKEN_ATTEMPTS,
                keys.OUTBOX,
                keys.response(job_id),
                keys.RESPONSE_BYTES,
            ],
            args=[
                job_id,
                number,
                keys.live(job_id),
                "1" if only_expired else "0",
                "0" if failure is None else "1",
                self._max_attempts,
                encode_event(End(state=JobState.FAILED, error=failure)),
                _json(failure),
                self._dead_retention_ms,
                *self._quarantine_args(job_id, model.decode(), digest, failure),
                company,
                encode_event(End(state=JobState.CANCELLED)),
                self._retention_ms,
            ],
        )
        if verdict == b"quarantined":
            _log.warning("prompt_quarantined", job_id=job_id, model=model.decode(), digest=digest.decode())
        if verdict != b"queued":
            return None
        return Released(model=rest[0].decode(), priority=Priority(rest[1]))

    def _quarantine_args(
        self, job_id: JobId, model: str, digest: bytes | None, failure: JobError | None
    ) -> tuple[int | str | bytes, ...]:
        """Arguments 10 to 15 of release.lua."""
        if not self._quarantine_ms or digest is None or failure is None or not speaks_against_prompt(failure):
            return (0, "", "", 0, "", "")
        suspect = Suspect(kind="prompt", model=model, digest=digest.decode(), cause=failure, jobs=(job_id,))
        error = JobError(code=PROMPT_QUARANTINED, message=suspect.reason)
        event = encode_event(End(state=JobState.FAILED, error=error))
        entry = msgspec.json.encode(suspect)
        return (MAX_RUNNER_LOSSES, event, _json(error), self._quarantine_ms, suspect.id, entry)


def _unreadable(error: msgspec.DecodeError) -> JobError:
    advice = "It was written by another version of Keepwarm; send the request again."
    message = f"The job's record can't be read ({error}). {advice}"
    return JobError(code="record_unreadable", message=message)


def _json(value: JobResult | JobError | None) -> bytes:
    return b"" if value is None else msgspec.json.encode(value)
