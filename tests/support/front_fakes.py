"""A front without a store: fakes of the ports in `app.backend`, kept in memory, and an application on top of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.backend import Backend, Batch
from app.grammar_check import GrammarCheck
from app.grammar_trial import Verdict, try_formats
from app.main import create_app
from app.settings import ApiSettings
from tasks.answer_cache import CacheOutcome
from tasks.batches import BatchFigures
from tasks.controller.decisions import Decision
from tasks.errors import JobNotFound, NotQuarantined, UnknownPlace
from tasks.fleet import Fleet, LoadCounts, ModelOffer, QueueReport, RunnerReport, RunnerState, WorkerReport
from tasks.forecast import QueueRoom
from tasks.generation import AnswerFormat
from tasks.job_filter import ALL_JOBS, JobFilter, JobPage
from tasks.job_request import JobRequest
from tasks.jobs import Job, JobId, JobState, Priority, WorkerId, new_job_id
from tasks.order import Order
from tasks.quarantine import Quarantine
from tasks.responses import ResponseFigures
from tasks.store.answer_store import CacheCounts
from tasks.store.token_reader import Follower
from tasks.stream_events import End, NumberedEvent, StreamEvent
from tasks.webhooks import DeadWebhook, OutboxState

NOW_MS = 1_700_000_000_000
DEMO = ModelOffer(id="demo", aliases=("gpt-demo",), context_length=256, slots=4, bytes=2_000_000, load_ms=50)
COLD = ModelOffer(id="cold", context_length=256, slots=1, bytes=3_000_000, load_ms=1500)


def demo_worker(*runners: RunnerReport, offers: tuple[ModelOffer, ...] = (DEMO, COLD)) -> WorkerReport:
    return WorkerReport(
        id=WorkerId("w1"),
        pid=10,
        host="here",
        device="cpu",
        budget_bytes=10_000_000,
        used_bytes=2_000_000,
        started_ms=NOW_MS,
        offers=offers,
        runners=runners or (demo_runner(),),
    )


def demo_runner(
    state: RunnerState = RunnerState.READY, *, model: str = "demo", progress: float = 1.0, in_flight: int = 0
) -> RunnerReport:
    return RunnerReport(
        pid=11,
        model=model,
        state=state,
        bytes=2_000_000,
        slots=4,
        in_flight=in_flight,
        since_ms=NOW_MS,
        progress=progress,
    )


@dataclass
class FakeOutbox:
    """Webhooks that wait."""

    counts: dict[str, int] = field(default_factory=lambda: {"delivered": 5, "dead timeout": 1})

    def num_pending(self) -> int:
        return 2

    def dead(self, limit: int) -> list[tuple[int, DeadWebhook]]:
        return []

    def state(self) -> OutboxState:
        return OutboxState(pending=2, overdue_s=1.5, counts=self.counts)


@dataclass
class FakeBatches:
    """Nothing but figures."""

    def figures(self) -> BatchFigures:
        lines = {"completed": 7, "failed": 1, "in_flight": 4, "waiting": 88}
        return BatchFigures(open={"in_progress": 2}, ended={"completed": 5}, lines=lines, window=256, oldest_age_s=61.5)


@dataclass
class FakeResponses:
    """Nothing but figures."""

    def figures(self) -> ResponseFigures:
        return ResponseFigures(kept=3, bytes=4567, evicted=2)


def without_batches() -> dict[str, Any]:
    """Ports of files, batches and stored responses for a front that is not asked about them; tests of those have a real
    store."""
    return {
        "files": None,
        "contents": None,
        "file_retention_ms": 0,
        "batches": FakeBatches(),
        "outbox": FakeOutbox(),
        "responses": FakeResponses(),
        "feed": lambda batch_id: None,
    }


@dataclass
class Submission:
    job: Job
    is_new: bool
    position: int
    is_heard: bool = False
    cache: CacheOutcome | None = None
    answer: tuple[NumberedEvent, ...] = ()
    follows: JobId | None = None
    room: QueueRoom | None = None


@dataclass
class Submitted:
    """What one call of `submit` was given."""

    request: JobRequest
    priority: Priority
    deadline_ms: int | None
    idempotency_key: str | None
    fingerprint: str | None


@dataclass
class FakeBackend:
    """All ports at once. `error` is raised by the next submission; batches are played in order to every follower."""

    batches: list[Batch] = field(default_factory=list)
    stays_open: bool = False  # after a last batch without an end: wait for ever
    breaks: Exception | None = None  # after the last batch: raised to whoever follows
    workers: tuple[WorkerReport, ...] = field(default_factory=lambda: (demo_worker(),))
    waiting: tuple[QueueReport, ...] = ()
    away: tuple[ModelOffer, ...] = ()  # offers of workers that are gone
    error: Exception | None = None
    store_error: Exception | None = None
    line_position: int | None = None
    room: QueueRoom | None = None  # of submitted jobs, in their line
    predicted_s: float | None = None
    jobs: dict[JobId, Job] = field(default_factory=dict)
    submitted: list[Submitted] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    cancelled: list[JobId] = field(default_factory=list)
    decided: list[Decision] = field(default_factory=list)
    quarantined: list[Quarantine] = field(default_factory=list)
    num_fleet_reads: int = 0
    by_key: dict[str, JobId] = field(default_factory=dict)
    num_followers: int = 0
    listening: list[Follower] = field(default_factory=list)

    def backend(self) -> Backend:
        return Backend(
            jobs=self,
            job_lists=self,
            fleet=self,
            dispatcher=self,
            streams=self,
            quarantine=self,
            decisions=self,
            answers=self,
            ping=self.ping,
            **without_batches(),
        )

    def ping(self) -> None:
        if self.store_error:
            raise self.store_error

    # ---- Submitter
    def submit(self, request: JobRequest, order: Order) -> Submission:
        if self.error:
            raise self.error
        self.submitted.append(
            Submitted(request, order.priority, order.deadline_ms, order.idempotency_key, order.fingerprint)
        )
        if order.idempotency_key in self.by_key:
            return Submission(self.jobs[self.by_key[order.idempotency_key]], False, 0)
        job = Job(
            id=order.job_id or new_job_id(),
            state=JobState.QUEUED,
            model=order.offer.id,
            priority=order.priority,
            attempt=0,
            last_seq=0,
            created_ms=NOW_MS,
            deadline_ms=order.deadline_ms,
            metadata=order.attached.metadata,
            webhook=order.attached.webhook,
            batch_id=order.attached.batch_id,
        )
        self.jobs[job.id] = job
        if order.idempotency_key:
            self.by_key[order.idempotency_key] = job.id
        is_heard = order.job_id in {follower.channel.decode() for follower in self.listening}
        return Submission(job, True, 0, is_heard=is_heard, room=self.room)

    def predicted_wait_s(self, model: str, priority: Priority, ahead: int) -> float | None:
        return self.predicted_s

    def requeue(self, job: Job, *, offer: ModelOffer) -> Submission:
        if self.error:
            raise self.error
        again = msgspec.structs.replace(job, id=new_job_id(), state=JobState.QUEUED, requeued_from=job.id, error=None)
        self.jobs[again.id] = again
        self.jobs[job.id] = msgspec.structs.replace(job, requeued_as=again.id)
        return Submission(again, True, 0)

    # ---- Jobs
    def get(self, job_id: JobId) -> Job:
        if job_id not in self.jobs:
            raise JobNotFound(job_id)
        return self.jobs[job_id]

    def recent(self, limit: int, wanted: JobFilter = ALL_JOBS, after: str | None = None) -> JobPage:
        jobs = [job for job in reversed(self.jobs.values()) if wanted.fits(job)]
        if after is not None:
            if after not in self.jobs:
                raise UnknownPlace(after)
            jobs = jobs[jobs.index(self.jobs[JobId(after)]) + 1 :]
        return JobPage(jobs=jobs[:limit], next_after=jobs[limit - 1].id if len(jobs) > limit else None)

    def dead(self, limit: int, wanted: JobFilter = ALL_JOBS) -> list[Job]:
        return [job for job in self.recent(limit, wanted).jobs if job.state is JobState.FAILED and not job.requeued_as]

    def cancel(self, job_id: JobId) -> Job:
        job = self.get(job_id)
        self.cancelled.append(job_id)
        if not job.state.is_terminal:
            self.jobs[job_id] = msgspec.structs.replace(job, state=JobState.CANCELLED)
        return self.jobs[job_id]

    def leave(self, job_id: JobId, client: JobId) -> None:
        self.cancel(job_id)

    def position(self, job: Job) -> int | None:
        return self.line_position

    # ---- FleetState
    def fleet(self) -> Fleet:
        self.num_fleet_reads += 1
        if self.store_error:
            raise self.store_error
        return Fleet(now_ms=NOW_MS, workers=self.workers)

    def queues(self) -> tuple[QueueReport, ...]:
        return self.waiting

    def broken_attempts(self) -> dict[tuple[str, str], int]:
        return {("runner_crashed", "demo"): 2}

    def loads(self) -> dict[str, LoadCounts]:
        return {"demo": LoadCounts(loads=3, load_ms=1500, swap_ms=4000, cold_starts=7)}

    # ---- AnswerCache
    def counts(self) -> CacheCounts:
        return CacheCounts(requests={(CacheOutcome.HIT, "demo"): 5}, evicted=1, answers=2, bytes=1234)

    # ---- DecisionLog
    def decisions(self, limit: int, *, models: Collection[str] = ()) -> list[Decision]:
        return [each for each in self.decided if not models or each.model in models][:limit]

    def decision_counts(self) -> dict[tuple[str, str], int]:
        return {("load", "room"): 4, ("evict", "ttl"): 2}

    # ---- FleetState
    def known_offers(self) -> tuple[ModelOffer, ...]:
        return self.away

    def ask(self, model_id: str, what: Literal["warm", "evict"]) -> None:
        self.asked.append((model_id, what))

    # ---- QuarantineWard
    def all(self) -> list[Quarantine]:
        return self.quarantined

    def lift(self, suspect_id: str) -> Quarantine:
        for entry in self.quarantined:
            if entry.id == suspect_id:
                self.quarantined.remove(entry)
                return entry
        raise NotQuarantined(suspect_id)

    # ---- TokenStreams
    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def listen(self, job_id: JobId) -> Follower:
        self.listening.append(Follower(job_id.encode()))
        return self.listening[-1]

    async def ignore(self, follower: Follower) -> None:
        if follower in self.listening:
            self.listening.remove(follower)

    async def follow_batches(
        self, job_id: JobId, after_seq: int = 0, *, follower: Follower | None = None
    ) -> AsyncGenerator[Batch, None]:
        self.num_followers += 1
        try:
            for batch in self.batches:
                yield [(seq, event) for seq, event in batch if seq is None or seq > after_seq]
                if any(isinstance(event, End) for _, event in batch):
                    return
            if self.breaks:
                raise self.breaks
            while self.stays_open:
                await asyncio.sleep(0)
                yield []
        finally:
            self.num_followers -= 1
            if follower is not None:
                await self.ignore(follower)


class InlineGrammarCheck(GrammarCheck):
    """Without the second of starting its process, and without what that protects from."""

    async def _try(self, line: bytes) -> Verdict:
        return try_formats(msgspec.json.decode(line, type=list[AnswerFormat]))


def numbered(*events: StreamEvent) -> list[Batch]:
    """One batch per event, numbered from 1."""
    return [[(seq, event)] for seq, event in enumerate(events, start=1)]


def succeeded(**fields) -> End:
    return End(state=JobState.SUCCEEDED, **{"finish_reason": "stop"} | fields)


def front_client(fake: FakeBackend, **settings) -> TestClient:
    """A client of an application on this fake; the settings are ApiSettings' fields."""
    app = create_app(ApiSettings(**settings), fake.backend())
    app.state.front = replace(app.state.front, grammars=InlineGrammarCheck())
    return TestClient(app, base_url="http://127.0.0.1")


def chat(**fields) -> dict:
    """A body for /v1/chat/completions."""
    return {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]} | fields


def sse_data(text: str) -> list:
    """Payloads of all `data:` lines, decoded but for the terminator."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else msgspec.json.decode(line) for line in lines]


class RawRequest:
    """One request to an ASGI application, with the client's side of the connection in the test's hand."""

    def __init__(self, app: FastAPI, method: str, path: str, body: object = None, headers: dict | None = None) -> None:
        self._incoming: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.has_body = asyncio.Event()
        fields = {"content-type": "application/json"} | (headers or {})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
            "scheme": "http",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50000),
            "state": {},
        }
        if body is not None:
            self.send_body(msgspec.json.encode(body))
        self.done = asyncio.create_task(app(scope, self._incoming.get, self._sent))

    def send_body(self, part: bytes, *, more: bool = False) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def _sent(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        self.chunks.append(message.get("body", b""))
        if self.body:
            self.has_body.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)
