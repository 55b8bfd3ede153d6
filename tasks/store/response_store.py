"""Responses that clients may come back to, kept beside their jobs. Synchronous; async callers use a thread.

The script that ends a job copies its outcome into the response's record (`conclude` in lua/prelude.lua), so a response
outlives its job without any process that would have to be alive then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tasks.errors import ResponseNotFound
from tasks.generation import JsonObject
from tasks.jobs import JobError, JobId, JobResult, JobState
from tasks.responses import Outcome, ResponseFigures, StoredResponse, response_id
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import Client, load_script, translated

LINGER_MS = 60_000  # of a job of which nothing is kept: whoever reads its stream just now may end

_FIELDS = ("response", "state", "model", "created", "finished", "result", "error")
_RESPONSE = msgspec.json.Decoder(StoredResponse)
_RESULT = msgspec.json.Decoder(JobResult)
_ERROR = msgspec.json.Decoder(JobError)
_ECHO = msgspec.json.Decoder(JsonObject)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptResponse:
    """`outcome` is None until the job has ended."""

    job_id: JobId
    response: StoredResponse
    outcome: Outcome | None


class ResponseStore:
    def __init__(self, client: Client, settings: StoreSettings) -> None:
        self._client = client
        self._retention_ms = settings.response_retention_s * 1000
        self._max_responses = settings.max_responses
        self._max_bytes = settings.max_responses_bytes
        self._keep = load_script(client, "response_keep")
        self._chain = load_script(client, "response_chain")
        self._discard = load_script(client, "response_discard")
        self._forget = load_script(client, "response_forget")

    @translated
    def keep(self, job_id: JobId, response: StoredResponse | None) -> None:
        """Before the job is admitted. None: nothing of it is kept, not even its job for long."""
        self._keep(
            keys=[keys.response(job_id), keys.RESPONSES, keys.RESPONSE_BYTES],
            args=[
                job_id,
                b"" if response is None else _encode(msgspec.structs.replace(response, echo={})),
                (response and response.previous) or "",
                self._retention_ms,
                LINGER_MS,
                self._max_responses,
                keys.response(JobId("")),
                b"" if response is None else _encode(response.echo),
                self._max_bytes,
            ],
        )

    @translated
    def discard(self, job_id: JobId) -> None:
        """The job was not admitted after all. If it was, and only the reply got lost, the record stays: a repeat under
        the same idempotency key leads to this job."""
        self._discard(
            keys=[keys.response(job_id), keys.RESPONSES, keys.RESPONSE_BYTES, keys.job(job_id)], args=[job_id]
        )

    @translated
    def get(self, job_id: JobId) -> KeptResponse:
        """Raises ResponseNotFound."""
        echo, *fields = self._client.hmget(keys.response(job_id), "echo", *_FIELDS)
        return _kept(job_id, fields, {} if echo is None else _ECHO.decode(echo))

    @translated
    def chain(self, job_id: JobId, limit: int) -> list[KeptResponse]:
        """The conversation that ends with this response, oldest first, without what they echo; `limit` bounds how far
        back. Raises ResponseNotFound for the first one that is gone."""
        prefix = keys.response(JobId(""))
        rows = self._chain(keys=[keys.response(job_id)], args=[job_id, limit, prefix, *_FIELDS])
        return [_kept(JobId(found.decode()), fields, {}) for found, *fields in reversed(rows)]

    @translated
    def forget(self, job_id: JobId) -> bool:
        """Delete the response with its job; whether the job still has to be cancelled."""
        return bool(
            self._forget(
                keys=[
                    keys.response(job_id),
                    keys.RESPONSES,
                    keys.job(job_id),
                    keys.stream(job_id),
                    keys.JOBS,
                    keys.DEAD,
                    keys.RESPONSE_BYTES,
                ],
                args=[job_id, LINGER_MS, self._retention_ms, keys.tagged("")],
            )
        )

    @translated
    def figures(self) -> ResponseFigures:
        pipe = self._client.pipeline(transaction=False)
        pipe.zcard(keys.RESPONSES)
        pipe.hmget(keys.RESPONSE_BYTES, "all", "evicted")
        kept, (num_bytes, evicted) = pipe.execute()
        return ResponseFigures(kept=kept, bytes=int(num_bytes or 0), evicted=int(evicted or 0))


def _kept(job_id: JobId, fields: Sequence[bytes | None], echo: JsonObject) -> KeptResponse:
    response, state, model, created, finished, result, error = fields or [None] * len(_FIELDS)
    if response is None:
        raise ResponseNotFound(response_id(job_id))
    outcome = None
    if state and model and created and finished:
        outcome = Outcome(
            state=JobState(state.decode()),
            model=model.decode(),
            created_ms=int(created),
            finished_ms=int(finished),
            result=_RESULT.decode(result) if result else None,
            error=_ERROR.decode(error) if error else None,
        )
    said = msgspec.structs.replace(_RESPONSE.decode(response), echo=echo)
    return KeptResponse(job_id=job_id, response=said, outcome=outcome)
