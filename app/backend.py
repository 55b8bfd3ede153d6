"""What the front needs from the rest of Keepwarm, as protocols, and the one place that connects the real thing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from app.batches.contents import Contents
from tasks.answer_cache import CacheOutcome
from tasks.attachments import NOTHING, Attachments
from tasks.batches import Batch as BatchRecord
from tasks.batches import BatchFigures
from tasks.controller.decisions import Decision
from tasks.files import StoredFile
from tasks.fleet import Fleet, LoadCounts, ModelOffer, QueueReport
from tasks.forecast import QueueRoom
from tasks.job_filter import ALL_JOBS, JobFilter, JobPage
from tasks.job_request import JobRequest
from tasks.jobs import Job, JobId, Priority
from tasks.order import Order
from tasks.quarantine import Quarantine
from tasks.responses import Outcome, ResponseFigures, StoredResponse
from tasks.settings import StoreSettings
from tasks.stream_events import NumberedEvent, StreamEvent
from tasks.webhooks import DeadWebhook, OutboxState

if TYPE_CHECKING:  # the command line needs the names here, not a client of the store
    from tasks.store.answer_store import CacheCounts
    from tasks.store.token_reader import Follower

Batch = list[tuple[int | None, StreamEvent]]


class Jobs(Protocol):
    """Job records. Blocking: call it in a thread. Every method may raise StoreUnavailable."""

    def get(self, job_id: JobId) -> Job: ...

    def cancel(self, job_id: JobId) -> Job: ...

    def leave(self, job_id: JobId, client: JobId) -> None:
        """End a job that others may wait for too, unless one of them does. `client`: the id under which the one asked
        that no longer waits."""
        ...

    def position(self, job: Job) -> int | None: ...


class JobLists(Protocol):
    """Blocking, as all of these."""

    def recent(self, limit: int, wanted: JobFilter = ALL_JOBS, after: str | None = None) -> JobPage: ...

    def dead(self, limit: int, wanted: JobFilter = ALL_JOBS) -> list[Job]: ...


class FleetState(Protocol):
    """What workers report, and what operators ask of the controller. Blocking."""

    def fleet(self) -> Fleet: ...

    def queues(self) -> tuple[QueueReport, ...]: ...

    def known_offers(self) -> tuple[ModelOffer, ...]: ...

    def broken_attempts(self) -> dict[tuple[str, str], int]: ...

    def loads(self) -> dict[str, LoadCounts]: ...

    def ask(self, model_id: str, what: Literal["warm", "evict"]) -> None: ...


class AnswerCache(Protocol):
    """The answers that are kept. Blocking."""

    def counts(self) -> CacheCounts: ...


class DecisionLog(Protocol):
    """What the controller decided, and why. Blocking."""

    def decisions(self, limit: int, *, models: Collection[str] = ()) -> list[Decision]: ...

    def decision_counts(self) -> dict[tuple[str, str], int]: ...


class QuarantineWard(Protocol):
    """Prompts and models that are kept away because they kill what serves them. Blocking."""

    def all(self) -> list[Quarantine]: ...

    def lift(self, suspect_id: str) -> Quarantine: ...


class Submitted(Protocol):
    """An admitted job; not new when an Idempotency-Key led to an earlier one."""

    @property
    def job(self) -> Job: ...

    @property
    def is_new(self) -> bool: ...

    @property
    def position(self) -> int: ...

    @property
    def is_heard(self) -> bool: ...

    @property
    def cache(self) -> CacheOutcome | None: ...

    @property
    def answer(self) -> tuple[NumberedEvent, ...]:
        """From the cache; then the job has no record."""
        ...

    @property
    def follows(self) -> JobId | None:
        """A job that computes the same; then this one has no record."""
        ...

    @property
    def room(self) -> QueueRoom | None:
        """Of a new job: in the line that it joined."""
        ...


class Submitter(Protocol):
    """Takes jobs in. Blocking. Raises QueueFull, StoreFull, IdempotencyMismatch, PromptQuarantined, ModelQuarantined,
    DeadlineCannotBeMet, StoreUnavailable."""

    def submit(self, request: JobRequest, order: Order) -> Submitted: ...

    def predicted_wait_s(self, model: str, priority: Priority, ahead: int) -> float | None: ...

    def requeue(self, job: Job, *, offer: ModelOffer) -> Submitted:
        """Raises JobNotRepeatable too."""
        ...


class KeptResponse(Protocol):
    """A stored response; without an outcome while its job is open."""

    @property
    def job_id(self) -> JobId: ...

    @property
    def response(self) -> StoredResponse: ...

    @property
    def outcome(self) -> Outcome | None: ...


class FileRecords(Protocol):
    """Records of files. Blocking. Raises FileMissing for an id that nothing has."""

    def now_ms(self) -> int: ...

    def add(self, file: StoredFile, *, max_total_bytes: int | None = None) -> None:
        """Raises FilesFull too."""
        ...

    def total_bytes(self) -> int: ...

    def get(self, file_id: str) -> StoredFile: ...

    def page(
        self, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
    ) -> tuple[list[StoredFile], bool]: ...

    def remove(self, file_id: str) -> None: ...


class BatchRecords(Protocol):
    """Records of batches. Blocking. Raises BatchNotFound for an id that nothing has."""

    def create(self, *, endpoint: str, input_file_id: str, attached: Attachments = NOTHING) -> BatchRecord:
        """Raises TooManyBatches."""
        ...

    def get(self, batch_id: str) -> BatchRecord: ...

    def page(self, *, after: str | None, limit: int) -> tuple[list[BatchRecord], bool]: ...

    def cancel(self, batch_id: str) -> BatchRecord:
        """Raises BatchNotCancellable too."""
        ...

    def open_input_files(self) -> dict[str, str]: ...

    def figures(self) -> BatchFigures: ...


class OutboxView(Protocol):
    """Webhooks that wait to be delivered, and those that were given up. Blocking."""

    def num_pending(self) -> int: ...

    def dead(self, limit: int) -> list[tuple[int, DeadWebhook]]:
        """The newest first, each with the ms at which it was given up."""
        ...

    def state(self) -> OutboxState: ...


class ResponseRecords(Protocol):
    """Stored responses. Blocking. Raises ResponseNotFound for one that is not there."""

    def keep(self, job_id: JobId, response: StoredResponse | None) -> None:
        """Before its job is admitted. None: nothing of it is to be kept."""
        ...

    def discard(self, job_id: JobId) -> None: ...

    def get(self, job_id: JobId) -> KeptResponse: ...

    def chain(self, job_id: JobId, limit: int) -> Sequence[KeptResponse]:
        """The conversation that ends with this response, oldest first."""
        ...

    def forget(self, job_id: JobId) -> bool:
        """Whether the job still has to be cancelled."""
        ...

    def figures(self) -> ResponseFigures: ...


class TokenStreams(Protocol):
    """Token streams of all jobs over one connection of this process."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def listen(self, job_id: JobId) -> Follower:
        """Hear of a job that is yet to be admitted; then `follow_batches` or `ignore`."""
        ...

    async def ignore(self, follower: Follower) -> None:
        """Also of one that is not heard any more."""
        ...

    def follow_batches(
        self, job_id: JobId, after_seq: int = 0, *, follower: Follower | None = None
    ) -> AsyncGenerator[Batch, None]:
        """What is available, list by list; an empty list about every second of silence; ends after End.

        `follower`: one that heard the job from its admission on, so that nothing has to be replayed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    jobs: Jobs
    job_lists: JobLists
    fleet: FleetState
    dispatcher: Submitter
    streams: TokenStreams
    quarantine: QuarantineWard
    decisions: DecisionLog
    answers: AnswerCache
    files: FileRecords
    contents: Contents
    file_retention_ms: int
    batches: BatchRecords
    outbox: OutboxView
    responses: ResponseRecords
    feed: Callable[[str], None]  # wake a batcher for this batch; never fails
    ping: Callable[[], None]  # raises StoreUnavailable


def connect_backend(settings: StoreSettings) -> Backend:
    """The real one, on the store of these settings. No connection is made yet. Raises InvalidSetting."""
    from tasks.admission_control import AdmissionControl
    from tasks.celery_app import create_celery_app
    from tasks.dispatch import Dispatcher
    from tasks.store.admission_store import AdmissionStore
    from tasks.store.answer_store import AnswerStore
    from tasks.store.batch_store import BatchStore
    from tasks.store.connection import connect, ping
    from tasks.store.file_store import FileStore
    from tasks.store.fleet_store import FleetStore
    from tasks.store.gauges import AdmissionGauges
    from tasks.store.job_lists import JobLists as StoredLists
    from tasks.store.job_store import JobStore
    from tasks.store.outbox_store import OutboxStore
    from tasks.store.policy_store import PolicyStore
    from tasks.store.quarantine_store import QuarantineStore
    from tasks.store.response_store import ResponseStore
    from tasks.store.token_reader import TokenReader
    from tasks.wakeups import Wakeups

    client = connect(settings)
    jobs = JobStore(client, settings)
    fleet = FleetStore(client)
    wakeups = Wakeups(create_celery_app(settings))
    return Backend(
        jobs=jobs,
        job_lists=StoredLists(client),
        fleet=fleet,
        dispatcher=Dispatcher(
            AdmissionStore(client, settings),
            jobs,
            fleet,
            wakeups,
            AdmissionControl(AdmissionGauges(client), settings),
        ),
        streams=TokenReader(settings),
        quarantine=QuarantineStore(client, settings),
        decisions=PolicyStore(client),
        answers=AnswerStore(client),
        files=FileStore(client),
        contents=Contents(settings.files_url, settings.home),
        file_retention_ms=settings.file_retention_s * 1000,
        batches=BatchStore(client, settings),
        outbox=OutboxStore(client, settings),
        responses=ResponseStore(client, settings),
        feed=wakeups.feed,
        ping=lambda: ping(client),
    )
