"""Answer one line of a batch by the very route that answers a direct request: in this process, without a network.

So a line is checked, worded and refused exactly as the same body sent by a client. Its job is admitted under the
line's idempotency key, at batch priority, and outlives the caller; the same call made again attaches to it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import httpx2
import msgspec
from fastapi import FastAPI

from app.backend import Backend, Submitted, Submitter
from app.error_handlers import ErrorFacts
from app.errors import FormatNotTried
from app.main import create_app
from app.settings import ApiSettings
from tasks import errors
from tasks.fleet import ModelOffer
from tasks.generation import JsonObject
from tasks.job_request import JobRequest
from tasks.jobs import Job, JobId, Priority
from tasks.order import Order

# The line is not to blame, and the same call can work later. The last one: its record ended while nobody followed it.
_TRY_AGAIN = frozenset(
    kind.code
    for kind in (errors.QueueFull, errors.StoreFull, errors.StoreUnavailable, errors.JobNotFound, FormatNotTried)
)
_RETRY_AFTER_S = 1.0
_MAX_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineAnswer:
    """What the route answered. `body` is JSON."""

    status: int
    request_id: str
    body: bytes
    job_ids: tuple[JobId, ...] = ()  # several when several choices were asked for
    error_code: str | None = None
    retry_after_s: float | None = None  # the line is to be sent again after this long

    @property
    def is_ok(self) -> bool:
        return self.status == 200


class AwaitedAdmissions:
    """Who wants to hear that the job of a key is admitted. Of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, Callable[[], None]] = {}

    @contextmanager
    def expect(self, key: str, on_admitted: Callable[[], None]) -> Iterator[None]:
        self._waiting[key] = on_admitted
        try:
            yield
        finally:
            del self._waiting[key]

    def admitted(self, key: str | None) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._tell, key)

    def _tell(self, key: str | None) -> None:
        if key in self._waiting:
            self._waiting[key]()


class LineCaller:
    def __init__(self, http: httpx2.AsyncClient, awaited: AwaitedAdmissions) -> None:
        self._http = http
        self._awaited = awaited

    async def call(
        self, endpoint: str, body: JsonObject, idempotency_key: str, on_admitted: Callable[[], None]
    ) -> LineAnswer:
        """Waits for as long as the job takes. `on_admitted` is called as soon as there is one."""
        with self._awaited.expect(idempotency_key, on_admitted):
            return await self._call(endpoint, body, idempotency_key)

    async def _call(self, endpoint: str, body: JsonObject, idempotency_key: str) -> LineAnswer:
        request_id = "req_" + secrets.token_hex(12)
        if body.get("stream"):
            return _refused(request_id, "stream", "stream: a batch has no streams; leave it out.")
        response = await self._http.post(
            endpoint,
            content=msgspec.json.encode(body | {"priority": "batch"}),
            headers={
                "content-type": "application/json",
                "idempotency-key": f'"{idempotency_key}"',
                "x-request-id": request_id,
            },
        )
        job_ids = response.headers.get("x-keepwarm-job", "")
        code = None if response.status_code == 200 else _code_of(response.content)
        retry_after_s = None
        if code in _TRY_AGAIN:
            said = response.headers.get("retry-after", "")
            retry_after_s = min(float(said) if said.isdigit() else _RETRY_AFTER_S, _MAX_RETRY_AFTER_S)
        return LineAnswer(
            status=response.status_code,
            request_id=request_id,
            body=response.content,
            job_ids=tuple(JobId(job_id) for job_id in job_ids.replace(",", " ").split()),
            error_code=code,
            retry_after_s=retry_after_s,
        )


@dataclass(frozen=True, slots=True)
class LineSubmitter:
    """Notes on every job whose line it answers, and says under which key one was admitted."""

    dispatcher: Submitter
    batch_id: str
    on_admitted: Callable[[str | None], None]

    def submit(self, request: JobRequest, order: Order) -> Submitted:
        order = replace(order, attached=replace(order.attached, batch_id=self.batch_id))
        submitted = self.dispatcher.submit(request, order)
        self.on_admitted(order.idempotency_key)
        return submitted

    def predicted_wait_s(self, model: str, priority: Priority, ahead: int) -> float | None:
        return self.dispatcher.predicted_wait_s(model, priority, ahead)

    def requeue(self, job: Job, *, offer: ModelOffer) -> Submitted:
        return self.dispatcher.requeue(job, offer=offer)


def patient_front(
    settings: ApiSettings,
    backend: Backend,
    batch_id: str,
    on_admitted: Callable[[str | None], None],
) -> FastAPI:
    """A front for the lines of one batch, that waits for an answer for as long as it takes."""
    backend = replace(backend, dispatcher=LineSubmitter(backend.dispatcher, batch_id, on_admitted))
    return create_app(settings.model_copy(update={"sync_timeout_s": math.inf, "host": "127.0.0.1"}), backend)


@asynccontextmanager
async def line_caller(settings: ApiSettings, backend: Backend, batch_id: str) -> AsyncIterator[LineCaller]:
    """A caller of a patient front, which runs in the event loop at hand."""
    awaited = AwaitedAdmissions()
    app = patient_front(settings, backend, batch_id, awaited.admitted)
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as http,
    ):
        yield LineCaller(http, awaited)


def _code_of(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["code"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return "http_error"


def _refused(request_id: str, param: str, message: str) -> LineAnswer:
    facts = ErrorFacts(status=400, code=errors.InvalidRequest.code, message=message, param=param)
    return LineAnswer(
        status=facts.status,
        request_id=request_id,
        body=msgspec.json.encode(facts.openai_body()),
        error_code=facts.code,
    )
