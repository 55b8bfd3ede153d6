"""Keepwarm's HTTP API from the command line's side. Knows URLs and failures, prints nothing.

ClientError
├── ApiUnreachable     nobody answers at the URL
└── ApiRefused         the API answered with a problem (RFC 9457)
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Self
from urllib.parse import quote

import httpx2

from app.settings import is_loopback
from tasks.errors import KeepwarmError
from tasks.generation import JsonObject
from tasks.stream_events import End, Reset, StreamEvent, Tokens, decode_event

CONNECT_TIMEOUT_S = 3.0
REPLY_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 300.0  # of one write or read, not of the whole
SILENCE_TIMEOUT_S = 45.0  # of a stream; the API sends a comment at least every 10 s
RECONNECT_FIRST_S = 0.2
RECONNECT_LONGEST_S = 3.0
MAX_JOBS_PER_PAGE = 1000  # the API allows no more
GIVE_UP_AFTER_S = 60.0  # without a single new event


class ClientError(KeepwarmError):
    """The command can't be carried out."""

    code: ClassVar[str] = "client_error"


class ApiUnreachable(ClientError):
    """Nobody answers at the URL."""

    code = "api_unreachable"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"No Keepwarm API answers at {url} ({reason}).\n"
            "Start one with `keepwarm up`, or say where it is with --url or KEEPWARM_URL."
        )


class ApiRefused(ClientError):
    """The API answered with a problem."""

    code = "api_refused"

    def __init__(self, status: int, message: str, problem: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem


class ApiClient:
    """One method per route. Raises ApiUnreachable and ApiRefused."""

    def __init__(
        self,
        url: str,
        *,
        transport: httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._clock = clock
        self._sleep = sleep
        try:
            host = httpx2.URL(self.url).host
        except httpx2.InvalidURL as error:
            raise ApiUnreachable(self.url, "this is no URL") from error
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            trust_env=not is_loopback(host),  # no proxy stands before this machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # ---- fleet

    def is_live(self) -> bool:
        """Whether a Keepwarm API answers at all."""
        try:
            return self._http.get("/livez", timeout=CONNECT_TIMEOUT_S).status_code == 200
        except httpx2.TransportError:
            return False

    def pool(self) -> JsonObject:
        return self._json("GET", "/v1/pool")

    def decisions(self, model: str, limit: int) -> list[JsonObject]:
        data: list[JsonObject] = self._json("GET", "/v1/pool/decisions", params={"model": model, "limit": limit})[
            "data"
        ]
        return data

    def models(self) -> list[JsonObject]:
        data: list[JsonObject] = self._json("GET", "/v1/models")["data"]
        return data

    def model(self, name: str) -> JsonObject:
        return self._json("GET", f"/v1/models/{quote(name, safe='')}")

    def warm(self, model: str) -> JsonObject:
        return self._json("POST", f"/v1/models/{quote(model, safe='')}/warm")

    def evict(self, model: str) -> JsonObject:
        return self._json("POST", f"/v1/models/{quote(model, safe='')}/evict")

    # ---- jobs

    def submit(self, body: JsonObject) -> JsonObject:
        """Admit a job. The idempotency key makes a repeat after a broken connection harmless."""
        return self._json("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": uuid.uuid4().hex})

    def job(self, job_id: str) -> JsonObject:
        return self._json("GET", f"/v1/jobs/{quote(job_id, safe='')}")

    def jobs(
        self,
        *,
        state: str | None = None,
        model: str | None = None,
        batch_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        dead: bool = False,
        limit: int = 20,
    ) -> list[JsonObject]:
        """Newest first, over as many pages as `limit` takes."""
        found: list[JsonObject] = []
        after: str | None = None
        while True:
            params = {
                "state": state,
                "model": model,
                "batch_id": batch_id,
                "dead": "true" if dead else None,
                "after": after,
                "limit": min(limit - len(found), MAX_JOBS_PER_PAGE),
            }
            params |= {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
            given = {name: value for name, value in params.items() if value is not None}
            page = self._json("GET", "/v1/jobs", params=given)
            found += page["data"]
            after = page.get("next_after")
            if after is None or len(found) >= limit:
                return found

    def cancel(self, job_id: str) -> JsonObject:
        return self._json("DELETE", f"/v1/jobs/{quote(job_id, safe='')}")

    def requeue(self, job_id: str) -> JsonObject:
        return self._json("POST", f"/v1/jobs/{quote(job_id, safe='')}/requeue")

    # ---- files and batches

    def upload(self, path: Path, *, purpose: str, filename: str) -> JsonObject:
        """Send a file piece by piece."""
        with path.open("rb") as content:
            return self._json(
                "POST",
                "/v1/files",
                data={"purpose": purpose},
                files={"file": (filename, content, "application/jsonl")},
                timeout=UPLOAD_TIMEOUT_S,
            )

    def download(self, file_id: str, sink: BinaryIO) -> None:
        """Write a file's content down piece by piece."""
        path = f"/v1/files/{quote(file_id, safe='')}/content"
        try:
            with self._http.stream("GET", path) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                for block in response.iter_bytes():
                    sink.write(block)
        except httpx2.TransportError as error:
            raise ApiUnreachable(self.url, _reason(error)) from error

    def delete_file(self, file_id: str) -> JsonObject:
        return self._json("DELETE", f"/v1/files/{quote(file_id, safe='')}")

    def create_batch(self, file_id: str, endpoint: str) -> JsonObject:
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        return self._json("POST", "/v1/batches", json=body)

    def batch(self, batch_id: str) -> JsonObject:
        return self._json("GET", f"/v1/batches/{quote(batch_id, safe='')}")

    def batches(self, limit: int) -> list[JsonObject]:
        data: list[JsonObject] = self._json("GET", "/v1/batches", params={"limit": limit})["data"]
        return data

    def cancel_batch(self, batch_id: str) -> JsonObject:
        return self._json("POST", f"/v1/batches/{quote(batch_id, safe='')}/cancel")

    # ---- webhooks

    def dead_webhooks(self, limit: int) -> list[JsonObject]:
        data: list[JsonObject] = self._json("GET", "/v1/webhooks/dead", params={"limit": limit})["data"]
        return data

    # ---- quarantine

    def quarantine(self) -> list[JsonObject]:
        data: list[JsonObject] = self._json("GET", "/v1/quarantine")["data"]
        return data

    def lift(self, suspect_id: str) -> JsonObject:
        return self._json("DELETE", f"/v1/quarantine/{quote(suspect_id, safe='')}")

    # ---- events

    def events(self, job_id: str) -> Iterator[StreamEvent]:
        """The job's events from the first to its End, each numbered one exactly once.

        A broken connection is taken up again after the last seen number, until nothing new came for
        GIVE_UP_AFTER_S.
        """
        last_seq, pause_s = 0, RECONNECT_FIRST_S
        progress_at = self._clock()
        while True:
            reason = "the stream ended early"
            try:
                for message in self._stream(job_id, last_seq):
                    event = decode_event(message.data.encode())
                    match event:
                        case Tokens() | Reset() | End():
                            seq = int(message.id or 0)
                            if seq <= last_seq:
                                continue
                            last_seq, pause_s, progress_at = seq, RECONNECT_FIRST_S, self._clock()
                    yield event
                    if isinstance(event, End):
                        return
            except httpx2.TransportError as error:
                reason = _reason(error)
            except ApiRefused as error:
                if error.status < 500:
                    raise
                reason = str(error)
            if self._clock() - progress_at > GIVE_UP_AFTER_S:
                raise ApiUnreachable(self.url, reason)
            self._sleep(pause_s)
            pause_s = min(pause_s * 2, RECONNECT_LONGEST_S)

    def _stream(self, job_id: str, last_seq: int) -> Iterator[httpx2.ServerSentEvent]:
        headers = {"Accept": "text/event-stream"}
        if last_seq:
            headers["Last-Event-ID"] = str(last_seq)
        timeout = httpx2.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        path = f"/v1/jobs/{quote(job_id, safe='')}/events"
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                response.read()
                raise _refusal(response)
            yield from httpx2.EventSource(response)

    def _json(self, method: str, path: str, **options: Any) -> JsonObject:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise ApiUnreachable(self.url, _reason(error)) from error
        if response.status_code >= 400:
            raise _refusal(response)
        try:
            answer: JsonObject = response.json()
        except ValueError as error:
            raise ApiUnreachable(self.url, "the answer is not Keepwarm's") from error
        return answer


def _reason(error: httpx2.TransportError) -> str:
    match error:
        case httpx2.ConnectError():
            return "connection refused" if "refused" in str(error).lower() else str(error) or "can't connect"
        case httpx2.TimeoutException():
            return "no answer in time"
        case _:
            return str(error) or type(error).__name__


def _refusal(response: httpx2.Response) -> ApiRefused:
    """The problem in the API's own words; the OpenAI routes spell it differently."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    problem = body if isinstance(body, dict) else {}
    error = problem.get("error")
    message = problem.get("detail") or (error.get("message") if isinstance(error, dict) else None)
    message = message or problem.get("title") or f"The API answered {response.status_code}."
    return ApiRefused(response.status_code, str(message), problem)
