"""A worker that does what the test says, step by step, through the real store: it takes real wake-ups, claims,
publishes through the real TokenWriter and finishes. No engine, no timing of its own."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.celery_app import create_celery_app
from tasks.fleet import ModelOffer, RunnerReport, RunnerState, WorkerReport
from tasks.generation import TokenLogprob
from tasks.jobs import JobError, JobId, JobResult, JobState, Priority, Usage, WorkerId
from tasks.ports import Attempt
from tasks.routing import model_queue
from tasks.settings import StoreSettings
from tasks.store import keys
from tasks.store.connection import connect
from tasks.store.fleet_store import FleetStore
from tasks.store.job_store import JobStore
from tasks.store.lease_store import LeaseStore
from tasks.store.token_writer import Chunk, TokenWriter
from tasks.stream_events import Notice, NumberedEvent, Tokens
from tasks.wakeups import Wakeups

PATIENCE_S = 4  # below the reply timeout of the client; what takes longer fails the test
WORKER_ID = WorkerId("scripted-1")
DEMO_OFFER = ModelOffer(
    id="demo", aliases=("gpt-demo",), context_length=256, slots=4, bytes=2_000_000, load_ms=50, description="scripted"
)


class ScriptedWorker:
    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._client = connect(settings)
        self._leases = LeaseStore(self._client, settings)
        self.writer = TokenWriter(self._client)
        self._fleet = FleetStore(self._client)
        self.fingerprint = ""  # of the models' files, as this worker has them
        self._hints = self._client.pubsub(ignore_subscribe_messages=True)
        self._hints.subscribe(keys.hints(WORKER_ID))
        self._hints.get_message(timeout=PATIENCE_S)

    def report(self, *offers: ModelOffer, in_flight: int = 0) -> None:
        """A heartbeat with a ready runner for every offer."""
        runners = tuple(
            RunnerReport(
                pid=1001,
                model=offer.id,
                state=RunnerState.READY,
                bytes=offer.bytes,
                slots=offer.slots,
                in_flight=in_flight,
                since_ms=0,
            )
            for offer in offers
        )
        self._fleet.heartbeat(
            WorkerReport(
                id=WORKER_ID,
                pid=1000,
                host="test",
                device="cpu",
                budget_bytes=100_000_000,
                used_bytes=sum(offer.bytes for offer in offers),
                started_ms=0,
                offers=offers,
                runners=runners,
            )
        )

    def take(self, model: str = "demo") -> Turn:
        """The next job of the model, by its real wake-up message."""
        job_id = self._pop(model)
        attempt = self._leases.claim(job_id, model, WORKER_ID, self.fingerprint)
        assert attempt, f"{job_id} was not there to claim"
        return Turn(self, attempt)

    def hand_over(self, model: str, target: str) -> None:
        """Move the next job of the model to another one, as the controller does, and take its wake-up there."""
        job_id = self._pop(model)
        priority = JobStore(self._client, self._settings).hand_over(job_id, model, target)
        assert priority is not None, f"{job_id} was not there to move"
        Wakeups(create_celery_app(self._settings)).wake(job_id, target, priority)

    def drop_wakeup(self, model: str) -> None:
        """Take one whose job is no longer there to claim."""
        self._pop(model)

    def _pop(self, model: str) -> JobId:
        queue = model_queue(model)
        levels = [queue if level == 0 else f"{queue}\x06\x16{level.value}" for level in Priority]
        popped = self._client.brpop(levels, timeout=PATIENCE_S)
        assert popped, f"no wake-up for {model} within {PATIENCE_S} s"
        (job_id,), _, _ = json.loads(base64.b64decode(json.loads(popped[1])["body"]))
        return JobId(job_id)

    def await_cancel(self) -> str:
        """Id of the next job whose cancellation this worker is told of."""
        while True:
            message = self._hints.get_message(timeout=PATIENCE_S)
            if message is not None:
                kind, _, job_id = message["data"].decode().partition(" ")
                assert kind == "cancel"
                return job_id

    def await_listener(self, job_id: JobId) -> None:
        """Until a front listens to the job: a notice reaches only those. Asks again and again, without a pause."""
        channel = keys.live(job_id)
        give_up_at = time.monotonic() + PATIENCE_S
        while not self._client.pubsub_numsub(channel)[0][1]:
            assert time.monotonic() < give_up_at, f"nobody listens to {job_id}"

    def break_job(self, job_id: str, code: str, message: str) -> None:
        """Break the job's attempt, whatever its number; one that waits is claimed first."""
        attempt = self._leases.claim(JobId(job_id), "demo", WORKER_ID)
        number = attempt.number if attempt else 1
        self._leases.release(JobId(job_id), number, failure=JobError(code=code, message=message))

    def finish(self, turn: Turn, state: JobState, result: JobResult | None, error: JobError | None) -> None:
        attempt = turn.attempt
        assert self._leases.finish(attempt.job_id, attempt.number, state, result=result, error=error)

    def close(self) -> None:
        self._hints.close()
        self._client.close()


@dataclass
class Turn:
    """One claimed job."""

    worker: ScriptedWorker
    attempt: Attempt
    seq: int = 0
    text: str = ""
    num_tokens: int = 0

    def say(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> None:
        self.num_tokens += 1
        self.text += text
        self.publish(Tokens(text, (self.num_tokens,), tuple(logprobs)))

    def publish(self, event: NumberedEvent) -> None:
        self.seq += 1
        self.worker.writer.append([Chunk(self.attempt.job_id, self.attempt.number, self.seq, event)])

    def notify(self, notice: Notice) -> None:
        self.worker.writer.notify([self.attempt.job_id], notice)

    def succeed(self, finish_reason: str = "stop") -> None:
        usage = Usage(prompt_tokens=7, completion_tokens=self.num_tokens, cached_tokens=3)
        result = JobResult(text=self.text, finish_reason=finish_reason, usage=usage)
        self.worker.finish(self, JobState.SUCCEEDED, result, None)

    def cancel(self) -> None:
        """What a worker does that was asked to."""
        self.worker.finish(self, JobState.CANCELLED, JobResult(text=self.text, finish_reason=None, usage=None), None)

    def break_down(self, code: str, message: str) -> None:
        self.worker.break_job(self.attempt.job_id, code, message)

    def fail(self, code: str, message: str, param: str | None = None) -> None:
        self.worker.finish(self, JobState.FAILED, None, JobError(code=code, message=message, param=param))

    def answer(self, *pieces: str) -> None:
        for piece in pieces:
            self.say(piece)
        self.succeed()
