"""The way in: jobs are admitted once per idempotency key, or answered from the cache. Blocking, as all stores."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tasks.answer_cache import CacheWish, result_of
from tasks.attachments import NOTHING, Attachments, attachment_fields, tags
from tasks.errors import (
    IdempotencyMismatch,
    JobNotFound,
    JobNotRepeatable,
    KeepwarmError,
    ModelQuarantined,
    PromptQuarantined,
    QueueFull,
)
from tasks.job_request import JobRequest, encode_request
from tasks.jobs import JobId, Priority
from tasks.quarantine import Quarantine, request_digest
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import Client, load_script, translated
from tasks.store.hot_script import RetriedScript
from tasks.store.quarantine_store import decode_entry
from tasks.stream_events import NumberedEvent, decode_numbered, encode_event
from tasks.wakeups import Envelope

RETRY_AFTER_FULL_S = 5  # the caller knows better when service rates are measured
INDEX_SLACK_MS = 24 * 3600 * 1000  # indexes are by creation, retention begins at the end
FORGET_AFTER_MS = 60_000  # of a forgotten job: whoever reads its stream just now may end
MIN_IDEMPOTENCY_MS = 24 * 3600 * 1000  # a key outlives the retry loops of clients, also of a job that waits for hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """`is_new` is False when an Idempotency-Key led to a job admitted before, or the cache spared a job."""

    job_id: JobId
    is_new: bool
    position: int = 0  # 0 = next in line
    created_ms: int = 0  # of a new job, or the store's time
    is_heard: bool = False  # somebody listened to the job's channel before it could say anything
    depth: int = 0  # jobs that wait for the model, with a new one
    total: int = 0  # and in all
    answer: tuple[NumberedEvent, ...] = ()  # cached: no job was admitted
    shared_with: JobId | None = None  # this job computes the same and may be followed: no job was admitted


class AdmissionStore:
    def __init__(self, client: Client, settings: StoreSettings) -> None:
        self._client = client
        self._settings = settings
        self._retention_ms = settings.retention_s * 1000
        self._index_ms = max(settings.retention_s, settings.dead_retention_s) * 1000 + INDEX_SLACK_MS
        self._admit = RetriedScript(client, "admit")
        self._answered = load_script(client, "answered")
        self._forget = load_script(client, "forget")

    @translated
    def admit(
        self,
        job_id: JobId,
        request: JobRequest,
        *,
        priority: Priority,
        deadline_ms: int | None,
        idempotency_key: str | None,
        fingerprint: str | None = None,
        repeats: JobId | None = None,
        refusal: KeepwarmError | None = None,
        wakeup: Envelope | None = None,
        attached: Attachments = NOTHING,
        wish: CacheWish | None = None,
    ) -> Admission:
        """Write and index the record and send its wake-up in one step. Without `wakeup` the caller sends it.

        `fingerprint`: what makes two bodies under one idempotency key equal; the request but for its seed if None.
        `repeats`: the job that ended badly and is asked for once more; a second call attaches to the repetition.
        `refusal`: raised instead of taking a new job in; a call that attaches to an earlier one is answered all the
        same. `wish`: what the cache may do for this request. Raises QueueFull, IdempotencyMismatch, JobNotRepeatable,
        PromptQuarantined, ModelQuarantined,
        StoreUnavailable."""
        payload = encode_request(request)
        key_digest = body_digest = ""
        digest = request_digest(request)
        if idempotency_key is not None:
            key_digest = _key_digest(idempotency_key)
            body_digest = fingerprint or digest
        settings = self._settings
        attached_fields, indexes = _attached(attached)
        further = [part for field in attached_fields.items() for part in field]
        answer_digest = "" if wish is None else wish.key.digest
        verdict, *rest = self._admit(
            keys=[
                keys.job(job_id),
                keys.waiting(request.model),
                keys.WAITING_MODELS,
                keys.QUEUED,
                keys.JOBS,
                keys.DEADLINES,
                keys.idempotency(key_digest),
                keys.DEAD,
                keys.job(repeats or job_id),
                keys.QUARANTINE,
                keys.ARRIVALS,
                "" if wakeup is None else wakeup.list_key,
                keys.computing(answer_digest),
                keys.answer(answer_digest),
                keys.ANSWERS_USED,
                keys.CACHE_COUNTS,
                *indexes,
            ],
            args=[
                job_id,
                request.model,
                int(priority),
                "" if deadline_ms is None else deadline_ms,
                payload,
                settings.max_queue_per_model,
                settings.max_queue_total,
                body_digest,
                max(self._retention_ms, MIN_IDEMPOTENCY_MS),
                repeats or "",
                digest,
                "0" if refusal is None else "1",
                "" if wakeup is None else wakeup.message,
                keys.live(job_id),
                answer_digest,
                "" if wish is None else wish.key.note,
                "1" if wish is not None and wish.ends_with_clients else "0",
                "1" if wish is not None and wish.may_follow else "0",
                self._index_ms,
                len(further) // 2,
                *further,
                f"model:{request.model}",
                f"prompt:{digest}",
            ],
        )
        match verdict:
            case b"admitted":
                position, created_ms, is_heard, depth, total = rest
                return Admission(
                    job_id=job_id,
                    is_new=True,
                    position=position,
                    created_ms=created_ms,
                    is_heard=bool(is_heard),
                    depth=depth,
                    total=total,
                )
            case b"hit":
                answer = tuple(decode_numbered(event) for event in rest[0].split(b"\n"))
                return Admission(job_id=job_id, is_new=False, created_ms=rest[1], answer=answer)
            case b"shared":
                return Admission(job_id=job_id, is_new=False, created_ms=rest[1], shared_with=JobId(rest[0].decode()))
            case b"attached":
                return Admission(job_id=JobId(rest[0].decode()), is_new=False)
            case b"mismatch":
                raise IdempotencyMismatch(
                    "This Idempotency-Key was used with another body; use a new key for a new request."
                )
            case b"not-repeatable":
                raise JobNotRepeatable(str(repeats), rest[0].decode()) if rest[0] else JobNotFound(str(repeats))
            case b"refused" if refusal is not None:
                raise refusal
            case b"quarantined":
                raise _quarantined(decode_entry(rest[0]), left_ms=rest[1])
            case b"full-model":
                raise QueueFull(
                    scope=f"'{request.model}'",
                    depth=rest[0],
                    limit=settings.max_queue_per_model,
                    retry_after_s=RETRY_AFTER_FULL_S,
                    model=request.model,
                )
            case _:
                raise QueueFull(
                    scope="all models together",
                    depth=rest[0],
                    limit=settings.max_queue_total,
                    retry_after_s=RETRY_AFTER_FULL_S,
                )

    @translated
    def write_answered(
        self,
        job_id: JobId,
        request: JobRequest,
        answer: Sequence[NumberedEvent],
        *,
        priority: Priority,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
        attached: Attachments = NOTHING,
    ) -> bool:
        """Write down a job that a cached answer has answered. False: its idempotency key is taken by now."""
        digest = request_digest(request)
        owner = "" if idempotency_key is None else f"{job_id} {fingerprint or digest}"
        attached_fields, indexes = _attached(attached)
        fields: dict[str, str | int | bytes] = {
            "model": request.model,
            "priority": int(priority),
            "attempt": 0,
            "failures": 0,
            "request": encode_request(request),
            "digest": digest,
            **attached_fields,
        }
        return bool(
            self._answered(
                keys=[
                    keys.job(job_id),
                    keys.stream(job_id),
                    keys.JOBS,
                    keys.idempotency(_key_digest(idempotency_key or "")),
                    keys.OUTBOX,
                    keys.response(job_id),
                    keys.RESPONSE_BYTES,
                    *indexes,
                ],
                args=[
                    job_id,
                    self._retention_ms,
                    owner,
                    max(self._retention_ms, MIN_IDEMPOTENCY_MS),
                    keys.live(job_id),
                    msgspec.json.encode(result_of(answer)),
                    self._index_ms,
                    len(answer),
                    *(encode_event(event) for event in answer),
                    *(part for field in fields.items() for part in field),
                ],
            )
        )

    @translated
    def of_keys(self, idempotency_keys: Sequence[str]) -> list[JobId | None]:
        """The jobs that were admitted under these idempotency keys, in their order."""
        if not idempotency_keys:
            return []
        found = self._client.mget([keys.idempotency(_key_digest(key)) for key in idempotency_keys])
        return [None if value is None else JobId(value.decode().partition(" ")[0]) for value in found]

    @translated
    def forget(self, ended: Mapping[str, JobId]) -> None:
        """Let go of jobs whose outcome is safe elsewhere, by idempotency key: the records stay for a minute only, the
        keys not at all. Dead letters stay, and so does a job that has not ended: it was only asked to."""
        if not ended:
            return
        per_job = [
            key
            for idempotency_key, job_id in ended.items()
            for key in (keys.job(job_id), keys.stream(job_id), keys.idempotency(_key_digest(idempotency_key)))
        ]
        self._forget(keys=[keys.JOBS, keys.DEAD, *per_job], args=[FORGET_AFTER_MS, keys.tagged(""), *ended.values()])


def _attached(attached: Attachments) -> tuple[dict[str, bytes], list[str]]:
    """Fields of the record, and keys of the indexes that list the job for them."""
    fields = attachment_fields(attached)
    if job_tags := tags(metadata=attached.metadata, batch_id=attached.batch_id):
        fields["tags"] = " ".join(job_tags).encode()
    return fields, [keys.tagged(tag) for tag in job_tags]


def _key_digest(idempotency_key: str) -> str:
    return hashlib.sha256(idempotency_key.encode()).hexdigest()


def _quarantined(entry: Quarantine, *, left_ms: int) -> PromptQuarantined | ModelQuarantined:
    if entry.suspect.kind == "prompt":
        return PromptQuarantined(
            entry.explanation, quarantine=entry.id, until=entry.until, cause=entry.suspect.cause.code
        )
    return ModelQuarantined(
        entry.explanation, quarantine=entry.id, until=entry.until, retry_after_s=math.ceil(left_ms / 1000)
    )
