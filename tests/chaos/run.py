"""One chaos run: jobs and faults side by side, then rest, then the checker over all that was left behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tasks.errors import StoreUnavailable
from tasks.jobs import Job, JobId, JobState, Priority
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import Client, connect, store_errors
from tasks.store.job_lists import JobLists
from tests.chaos.checker import (
    SUCCEEDED_ONLY,
    Evidence,
    Observation,
    Record,
    Reference,
    Submission,
    Transcript,
    Violation,
    check,
)
from tests.chaos.clients import Clients
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Faults

WATCH_S = 0.25
START_LIMIT_S = 60.0
LEAD = 0.1  # share of the kills that may be ahead of the jobs
MAY_BE_CANCELLED = SUCCEEDED_ONLY | {JobState.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything. Pace: jobs are posted as the kills come, so that both end together."""

    seed: int
    models: tuple[str, ...]
    jobs: int
    kills: int
    clients: int = 24  # jobs that are open at once
    fault_interval_s: float = 1.2  # on average
    settle_s: float = 60.0  # after the last fault some job must end within this time, as long as any is open
    limit_s: float = 3600.0  # of the whole run
    cut_chance: float = 0.02  # per event, that a reader hangs up and comes back
    cancel_chance: float = 0.08


@dataclass(slots=True)
class Outcome:
    """What happened."""

    acknowledged: int = 0
    states: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)  # jobs by their number of attempts
    faults: Counter[str] = field(default_factory=Counter)
    events: int = 0  # in all streams
    connections: int = 0  # of all readers
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)


Progress = Callable[[int, int], None]  # jobs that ended, kills
Body = dict[str, object]  # as posted to /v1/jobs


async def run_chaos(
    plan: Plan,
    cluster: Cluster,
    reference: Callable[[Body], Reference],
    make_body: Callable[[random.Random], Body],
    on_progress: Progress = lambda jobs, kills: None,
) -> Outcome:
    """The cluster is up when this begins, and at rest when it returns."""
    run = _Run(plan, cluster, reference, make_body, on_progress)
    return await run.run()


class _Run:
    def __init__(
        self,
        plan: Plan,
        cluster: Cluster,
        reference: Callable[[Body], Reference],
        make_body: Callable[[random.Random], Body],
        on_progress: Progress,
    ) -> None:
        self._plan = plan
        self._cluster = cluster
        self._reference = reference
        self._make_body = make_body
        self._on_progress = on_progress
        self._rng = random.Random(plan.seed)
        self._clients = Clients(cluster.urls, random.Random(plan.seed + 1))
        self._faults = Faults(cluster, random.Random(plan.seed + 2), plan.models)
        self._client = connect(cluster.store_settings)
        self._submissions: list[Submission] = []
        self._transcripts: list[Transcript] = []
        self._seen: dict[str, list[Observation]] = {}
        self._ended = 0
        self._at_rest = asyncio.Event()

    async def run(self) -> Outcome:
        started = time.monotonic()
        await self._wait_ready()
        watcher = asyncio.create_task(self._watch())
        work = asyncio.create_task(self._work())
        faults = asyncio.create_task(self._fault_all())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._plan.limit_s):
                await faults
        faults.cancel()
        await self._settle(work)
        work.cancel()
        await asyncio.gather(work, faults, return_exceptions=True)
        await asyncio.sleep(self._cluster.store_settings.lease_s + 1)  # zombies get their chance to write
        self._at_rest.set()
        await watcher
        outcome = await asyncio.to_thread(self._take_stock)
        outcome.seconds = time.monotonic() - started
        await self._clients.http.aclose()
        return outcome

    async def _settle(self, work: asyncio.Task[None]) -> None:
        """Until all jobs have ended, or none does any more."""
        ended, patience_s = -1, 0.0
        while not work.done() and patience_s < self._plan.settle_s:
            patience_s = patience_s + WATCH_S if self._ended == ended else 0.0
            ended = self._ended
            await asyncio.wait([work], timeout=WATCH_S)

    # ---- jobs

    async def _work(self) -> None:
        room = asyncio.Semaphore(self._plan.clients)
        async with asyncio.TaskGroup() as group:
            for number in range(self._plan.jobs):
                while number > self._allowance():
                    await asyncio.sleep(WATCH_S)
                await room.acquire()
                task = group.create_task(self._one_job(number))
                task.add_done_callback(lambda _: room.release())

    def _allowance(self) -> float:
        if not self._plan.kills:
            return self._plan.jobs
        return self._plan.jobs * (self._faults.kills + 1) / self._plan.kills

    async def _one_job(self, number: int) -> None:
        rng = random.Random(self._plan.seed * 1_000_003 + number)
        body = self._make_body(rng)
        is_cancelled = rng.random() < self._plan.cancel_chance
        job_id = await self._clients.submit(body, key=f"chaos-{self._plan.seed}-{number}")
        reference = await asyncio.to_thread(self._reference, body)
        may_end = MAY_BE_CANCELLED if is_cancelled else SUCCEEDED_ONLY
        self._submissions.append(Submission(job_id=job_id, reference=reference, may_end=may_end))
        self._seen[job_id] = []
        self._faults.job_ids.append((JobId(job_id), str(body["model"]), Priority.named(str(body["priority"]))))
        async with asyncio.TaskGroup() as group:
            for reader in range(rng.choice((1, 1, 2))):
                cut_chance = self._plan.cut_chance if reader == 0 else 0.0
                read = self._clients.read(job_id, f"reader {reader}", cut_chance=cut_chance, into=self._transcripts)
                group.create_task(read)
            if is_cancelled:
                await asyncio.sleep(rng.uniform(0, 2))
                await self._clients.cancel(job_id)
        self._ended += 1
        self._on_progress(self._ended, self._faults.kills)

    # ---- faults

    async def _fault_all(self) -> None:
        """Faults overlap: the next one does not wait for the end of the one before."""
        rng = random.Random(self._plan.seed + 3)
        running: set[asyncio.Task[None]] = set()
        while self._faults.kills < self._plan.kills:
            while self._faults.kills / self._plan.kills > self._ended / self._plan.jobs + LEAD:
                await asyncio.sleep(WATCH_S)  # a busy machine: no fault without a job that could notice it
            await asyncio.sleep(rng.uniform(0.2, 1.8) * self._plan.fault_interval_s)
            task = asyncio.create_task(asyncio.to_thread(self._faults.inject, self._faults.draw()))
            running.add(task)
            task.add_done_callback(running.discard)
            self._on_progress(self._ended, self._faults.kills)
        await asyncio.gather(*running)

    # ---- what is seen

    async def _wait_ready(self) -> None:
        async with asyncio.timeout(START_LIMIT_S):
            for url in self._cluster.urls:
                while True:
                    with contextlib.suppress(Exception):
                        if (await self._clients.http.get(f"{url}/readyz")).is_success:
                            break
                    await asyncio.sleep(WATCH_S)

    async def _watch(self) -> None:
        """Note every change of every record, as far as polling can see it."""
        while not self._at_rest.is_set():
            still_open = {id: seen for id, seen in self._seen.items() if not (seen and seen[-1].state.is_terminal)}
            with contextlib.suppress(StoreUnavailable):
                await asyncio.to_thread(self._look, still_open)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._at_rest.wait()

    def _look(self, still_open: dict[str, list[Observation]]) -> None:
        with store_errors():
            pipe = self._client.pipeline(transaction=False)
            for job_id in still_open:
                pipe.hmget(keys.job(JobId(job_id)), "state", "attempt", "seq")
            rows = pipe.execute()
        for seen, (state, attempt, seq) in zip(still_open.values(), rows, strict=True):
            if state is not None:
                now = Observation(state=JobState(state.decode()), attempt=int(attempt), last_seq=int(seq))
                if not seen or seen[-1] != now:
                    seen.append(now)

    def _take_stock(self) -> Outcome:
        records = read_records(self._cluster.store_settings, self._submissions)
        evidence = Evidence(
            submissions=self._submissions,
            records=records,
            transcripts=self._transcripts,
            observations=self._seen,
        )
        return Outcome(
            acknowledged=len(self._submissions),
            states=Counter(str(record.state) for record in records.values()),
            attempts=Counter(record.attempt for record in records.values()),
            faults=self._faults.done,
            events=sum(len(record.stream) for record in records.values()),
            connections=sum(len(transcript.connections) for transcript in self._transcripts),
            violations=[*check(evidence), *self._clients.violations, *self._leftovers()],
        )

    def _leftovers(self) -> list[Violation]:
        """What a store and a machine at rest must not have."""
        left = [Violation("-", "leftover", text) for text in index_leftovers(self._client, self._plan.models)]
        return left + [Violation("-", "leftover", f"runner {pid}") for pid in self._cluster.stray_runner_pids()]


def read_records(settings: StoreSettings, submissions: Iterable[Submission]) -> dict[str, Record]:
    """What the store has of these jobs."""
    client = connect(settings)
    jobs = JobLists(client).get_many([JobId(each.job_id) for each in submissions])
    return {str(job.id): _record(job, client.xrange(keys.stream(job.id))) for job in jobs}


def _record(job: Job, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> Record:
    usage = job.result.usage if job.result else None
    return Record(
        state=job.state,
        attempt=job.attempt,
        last_seq=job.last_seq,
        text=job.result.text if job.result else None,
        completion_tokens=usage.completion_tokens if usage else None,
        stream=tuple((int(entry_id.split(b"-")[1]), fields[b"e"]) for entry_id, fields in entries),
    )


def index_leftovers(client: Client, models: tuple[str, ...]) -> list[str]:
    """Entries in the indexes of open jobs, when no job is open."""
    indexes = [keys.QUEUED, keys.RUNNING, keys.DEADLINES, *(keys.waiting(model) for model in models)]
    return [f"{key} has {count} entries" for key in indexes if (count := client.zcard(key))]
