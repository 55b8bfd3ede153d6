"""The worker's handle of one runner process: its state, its slots, and the attempts that run in it.

One reader thread per runner takes everything that has arrived, publishes it as one batch with one chunk per sequence,
and only then resolves the sequences that ended: nobody learns an outcome before its tokens are in the store. The last
chunk of a sequence that ended by itself is part of its outcome: one call to the store writes both. While a batch is
being published, frames pile up in the socket and become the next, larger batch.

The reader thread is also the watchdog: it sees the end of the stream, deadlines, and silence. Everything that ends a
runner goes through the process's end: kill it, and the reader resolves what was in flight.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import assert_never

import structlog

from tasks.encoding import EncodingRequest
from tasks.errors import (
    KeepwarmError,
    ModelLoadBroken,
    ModelLoadFailed,
    RunnerCrashed,
    RunnerOutOfMemory,
    RunnerStalled,
    StoreUnavailable,
)
from tasks.fleet import RUNNER_NEXT, RunnerReport, RunnerState
from tasks.jobs import JobId, Priority
from tasks.ports import Attempt, Cancelled, Failed, Lost, Outcome, Parked
from tasks.store.token_writer import Chunk
from tasks.store.verdict import Verdict
from workers.clock import Clock
from workers.flight import Ending, Flight
from workers.lease_keeper import RunningAttempt
from workers.messages import (
    Cancel,
    Done,
    Encode,
    Encoded,
    Fatal,
    FromRunner,
    Generate,
    LoadFailed,
    LoadProgress,
    Ready,
    Rejected,
    Shutdown,
    Step,
    TokenOut,
    ToRunner,
)
from workers.model_files import adapter_fingerprint
from workers.oom import kernel_oom_kills
from workers.places import Places
from workers.runner_link import LinkClosed, RunnerLink
from workers.token_sink import TokenSink

log = structlog.get_logger(__name__)

WATCH_INTERVAL_S = 0.25  # how late a deadline or a silence may be noticed
EXIT_PATIENCE_S = 2.0  # between the end of the stream and the end of the process
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0

GONE = frozenset({RunnerState.STOPPED, RunnerState.CRASHED})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """How long a runner may be silent, in seconds."""

    stall_s: float  # no frame while something is in flight
    load_stall_s: float  # no progress while loading
    publish_s: float = 30.0  # the store takes no tokens; then the attempts fail and may be retried


class Runner:
    """States as in `tasks.fleet.RUNNER_NEXT`. `on_change` is called without locks, from any thread."""

    def __init__(
        self,
        *,
        model: str,
        link: RunnerLink,
        slots: int,
        sink: TokenSink,
        limits: RunnerLimits,
        clock: Clock,
        on_change: Callable[[], None],
        fingerprint: str = "",
        oom_kills: Callable[[], int] = kernel_oom_kills,
    ) -> None:
        self.model = model
        self.slots = slots
        self.fingerprint = fingerprint
        self._link = link
        self._sink = sink
        self._limits = limits
        self._clock = clock
        self._on_change = on_change
        self._oom_kills = oom_kills
        self._oom_kills_before = oom_kills()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._begin_lock = threading.Lock()  # keeps a Cancel from overtaking its Generate
        self._state = RunnerState.STARTING
        self._since_ms = self._idle_since_ms = clock.now_ms()
        self._places = Places(slots)
        self._flights: dict[int, Flight] = {}
        self._next_key = 1
        self._progress = 0.0
        self._last_sign_s = clock.monotonic_s()
        self._is_parking = False
        self._stop_wanted = threading.Event()
        self._killed_at_s: float | None = None
        self._loaded = threading.Event()  # Ready came, or it never will
        self._answered = threading.Event()  # the first output came, or it never will
        self._gone = threading.Event()
        self.ready: Ready | None = None
        self.failure: KeepwarmError | None = None  # why it crashed or did not load
        self._thread = threading.Thread(target=self._read, name=f"runner-{model}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ---- what it is

    @property
    def pid(self) -> int:
        return self._link.pid

    @property
    def state(self) -> RunnerState:
        return self._state

    @property
    def in_flight(self) -> int:
        """Attempts that hold a place, whether they have begun or not."""
        return self._places.in_flight

    @property
    def free_slots(self) -> int:
        """Places for an attempt of any priority."""
        with self._lock:
            return self._room(Priority.BATCH)

    @property
    def urgent_slots(self) -> int:
        """Places for an attempt that is more urgent than batch work: the free ones, and those that batch work holds."""
        with self._lock:
            return self._room(Priority.DEFAULT)

    def report(self, bytes_held: int, *, state: RunnerState | None = None) -> RunnerReport:
        """`state`: what the owner has decided already, when that is ahead of the process."""
        with self._lock:
            return RunnerReport(
                pid=self.pid,
                model=self.model,
                state=state or self._state,
                bytes=bytes_held,
                slots=self.slots,
                in_flight=self.in_flight,
                batch_in_flight=self._places.batch_in_flight,
                since_ms=self._since_ms,
                idle_since_ms=None if self.in_flight else self._idle_since_ms,
                progress=1.0 if self.ready else self._progress,
            )

    def in_flight_of(self, model: str) -> int:
        """Attempts of this model alone that have begun: of an adapter, or of the runner's own model."""
        return sum(flight.attempt.model == model for flight in self._all_flights())

    def running_attempts(self) -> list[RunningAttempt]:
        """What is in flight, with the engine steps since it began: the proof of life for its lease."""
        return [
            RunningAttempt(flight.attempt.job_id, flight.attempt.number, flight.steps)
            for flight in self._all_flights()
            if not flight.is_resolved
        ]

    # ---- load

    def wait_loaded(self) -> Ready:
        """Block until the model is loaded. Raises the reason when it isn't: ModelLoadFailed or RunnerCrashed."""
        self._loaded.wait()
        if self.ready is None:
            raise self.failure or ModelLoadFailed(f"The load of '{self.model}' was stopped.")
        return self.ready

    def wait_answering(self, timeout_s: float) -> bool:
        """Block until it has put out something, or is gone; False after the timeout."""
        return self._answered.wait(timeout_s)

    def open(self) -> bool:
        """Starting → ready, once the owner has accounted for its memory. False when it is gone by now."""
        with self._lock:
            opened = self._state is RunnerState.STARTING and not self._stop_wanted.is_set()
            if opened:
                self._move_to(RunnerState.READY)
        self._on_change()
        return opened

    # ---- work

    def take_slot(self, priority: Priority, model: str | None = None) -> RunnerSlot | None:
        """Reserve a place for one attempt at the runner's own model, or at this adapter of it; None when full for its
        priority, or not ready."""
        with self._lock:
            before = self._places.openness
            if self._state is not RunnerState.READY or not self._places.take(priority):
                return None
            has_changed = self._places.openness != before
        if has_changed:
            self._on_change()
        return RunnerSlot(self, priority, model or self.model)

    def _room(self, priority: Priority) -> int:
        """The caller holds the lock."""
        return self._places.room(priority) if self._state is RunnerState.READY else 0

    def cancel(self, job_id: JobId) -> bool:
        """End all attempts of the job here; False when there are none."""
        flights = [each for each in self._all_flights() if each.attempt.job_id == job_id]
        for flight in flights:
            self._end(flight, Ending.CANCEL)
        return bool(flights)

    def park_all(self) -> None:
        """Stop every sequence at a token boundary; attempts that begin from now on are parked at once."""
        with self._lock:
            self._is_parking = True
        for flight in self._all_flights():
            self._end(flight, Ending.PARK)

    # ---- end

    def begin_drain(self) -> None:
        """Take no new work, for good. Running work goes on."""
        with self._lock:
            if self._state is not RunnerState.READY:
                return
            self._move_to(RunnerState.DRAINING)
        self._on_change()

    def wait_idle(self, timeout_s: float) -> bool:
        """True when no slot is taken any more, or the process is gone."""
        with self._idle:
            return self._idle.wait_for(lambda: self.in_flight == 0 or self._gone.is_set(), timeout_s)

    def stop(self, grace_s: float) -> None:
        """End the process: asked first when it is ready, killed when it is loading or does not listen."""
        if self._gone.is_set():
            return
        is_loading = self._state is RunnerState.STARTING
        self._stop_wanted.set()
        self.begin_drain()
        if is_loading:
            self._kill()
        else:
            self._tell(Shutdown())
        if not self._gone.wait(grace_s):
            self._kill()

    def wait_gone(self, timeout_s: float | None = None) -> bool:
        """Block until the process is gone and everything that was in flight has its outcome."""
        return self._gone.wait(timeout_s)

    # ---- slots, for RunnerSlot

    def run_in_taken_slot(self, attempt: Attempt, priority: Priority) -> Outcome:
        flight, outcome = self._begin(attempt, priority)
        if outcome is not None:
            self.release_slot(priority)
            return outcome
        log.info(  # while the runner is at work already: a line costs as much time as handing the work over
            "attempt_started",
            job_id=attempt.job_id,
            attempt=attempt.number,
            model=attempt.model,
            forced=len(attempt.forced_ids),
        )
        return flight.wait()

    def release_slot(self, priority: Priority) -> None:
        with self._idle:
            before = self._places.openness
            self._places.give_back(priority)
            has_changed = self._state is RunnerState.READY and self._places.openness != before
            if self.in_flight == 0:
                self._idle_since_ms = self._clock.now_ms()
                self._idle.notify_all()
        if has_changed:
            self._on_change()

    def _begin(self, attempt: Attempt, priority: Priority) -> tuple[Flight, Outcome | None]:
        for other in self._all_flights():
            if other.attempt.job_id == attempt.job_id and other.attempt.number < attempt.number:
                self._abandon(other, Lost())  # rescued while it still ran here: the higher attempt has won
        with self._begin_lock:
            with self._lock:
                flight = Flight(attempt, self._next_key, priority)
                self._next_key += 1
                refusal = self._refusal(flight)
                if refusal is not None:
                    return flight, refusal
                if not self._flights:
                    self._last_sign_s = self._clock.monotonic_s()  # silence counts from the first work
                self._flights[flight.key] = flight
            self._tell(_order(flight, priority, of=self.model))
        return flight, None

    def _refusal(self, flight: Flight) -> Outcome | None:
        if self._is_parking or (self._stop_wanted.is_set() and self.failure is None):
            return Parked()
        if self._state in GONE:
            error = self.failure or RunnerCrashed(self.model, self._link.exit_code())
            return flight.outcome_of_loss(error, company=1)  # it came too late to be to blame
        if flight.expires_before(self._clock.now_ms()):
            return Cancelled(text=flight.attempt.emitted_text, usage=None, is_expired=True)
        return None

    # ---- the reader thread

    def _read(self) -> None:
        try:
            while True:
                messages = self._link.receive(WATCH_INTERVAL_S)
                if messages:
                    self._take(messages)
                elif self._is_beyond_hope():
                    break
                self._watch()
        except LinkClosed as closed:
            log.info("runner_link_closed", model=self.model, pid=self.pid, reason=str(closed))
        except Exception:
            log.exception("runner_reader_failed", model=self.model, pid=self.pid)
        self._conclude()

    def _take(self, messages: Sequence[FromRunner]) -> None:
        ends: list[Done | Rejected] = []
        for message in messages:
            self._take_one(message, ends)
        self._publish(ended={end.key for end in ends if isinstance(end, Done) and end.finish_reason is not None})
        for end in ends:
            if flight := self._flight(end.key):
                self._land(flight, _outcome_of(flight, end))
        self._last_sign_s = self._clock.monotonic_s()  # after publishing: a slow store is not a silent runner

    def _take_one(self, message: FromRunner, ends: list[Done | Rejected]) -> None:
        match message:
            case Step(outputs=outputs):
                self._take_step(outputs, ends)
            case Rejected():
                ends.append(message)
            case LoadProgress(fraction=fraction):
                self._progress = max(self._progress, min(fraction, 1.0))
            case Ready():
                self.ready = message
                self._loaded.set()
            case LoadFailed(reason=reason):
                self.failure = ModelLoadFailed(f"'{self.model}' can't be loaded: {reason}")
            case Fatal(reason=reason):
                log.error("runner_fatal", model=self.model, pid=self.pid, reason=reason)
            case _:
                assert_never(message)

    def _take_step(self, outputs: Sequence[TokenOut | Encoded | Done], ends: list[Done | Rejected]) -> None:
        for flight in self._all_flights():
            flight.steps += 1
        if outputs:
            self._answered.set()
        for output in outputs:
            if isinstance(output, Done):
                ends.append(output)
            elif addressee := self._flight(output.key):
                addressee.add(output)

    def _publish(self, ended: Set[int]) -> None:
        """`ended`: keys of sequences whose last chunk goes out with their end."""
        going = [flight for flight in self._all_flights() if flight.key not in ended]
        chunks = {flight: chunk for flight in going if (chunk := flight.take_chunk())}
        if not chunks:
            return
        try:
            verdicts = self._append(tuple(chunks.values()))
        except StoreUnavailable as error:
            for flight in chunks:
                self._abandon(flight, flight.outcome_of_loss(error))
            return
        for flight, verdict in zip(chunks, verdicts, strict=True):
            if verdict is Verdict.CANCEL:
                self._end(flight, Ending.CANCEL)
            elif verdict is Verdict.LOST:
                self._abandon(flight, Lost())

    def _append(self, chunks: Sequence[Chunk]) -> Sequence[Verdict]:
        """Insist for a while: the tokens exist nowhere else, and the runner waits for us meanwhile."""
        give_up_s = self._clock.monotonic_s() + self._limits.publish_s
        pause_s = FIRST_RETRY_S
        while True:
            try:
                return self._sink.append(chunks)
            except StoreUnavailable:
                if self._stop_wanted.wait(pause_s) or self._clock.monotonic_s() >= give_up_s:
                    raise
                pause_s = min(pause_s * 2, LAST_RETRY_S)

    def _watch(self) -> None:
        now_ms = self._clock.now_ms()
        for flight in self._all_flights():
            if flight.expires_before(now_ms):
                self._end(flight, Ending.EXPIRE)
        silent_s = self._clock.monotonic_s() - self._last_sign_s
        if self.failure is not None:
            return
        if self.ready is None and silent_s > self._limits.load_stall_s:
            self.failure = ModelLoadFailed(
                f"'{self.model}' can't be loaded: no progress for {silent_s:.0f} s at {self._progress:.0%}."
            )
            self._kill()
        elif self._flights and silent_s > self._limits.stall_s:
            self.failure = RunnerStalled(self.model, silent_s)
            self._kill()

    def _kill(self) -> None:
        if self._killed_at_s is None:
            self._killed_at_s = self._clock.monotonic_s()
        self._link.kill()

    def _is_beyond_hope(self) -> bool:
        """No end of the stream will come: its socket outlived it in some child, or the kernel can't end it."""
        if self._link.exit_code() is not None:
            return True
        return self._killed_at_s is not None and self._clock.monotonic_s() - self._killed_at_s > EXIT_PATIENCE_S

    def _conclude(self) -> None:
        """The process is gone or must go: settle its state first, then everything that was in flight."""
        exit_code = self._link.wait_exit(EXIT_PATIENCE_S)
        if exit_code is None:
            self._link.kill()
            exit_code = self._link.wait_exit(EXIT_PATIENCE_S)
        with self._lock:
            is_wanted = self._stop_wanted.is_set() and self.failure is None
            if not is_wanted and self.failure is None:
                self.failure = self._crash(exit_code)
            self._move_to(RunnerState.STOPPED if is_wanted else RunnerState.CRASHED)
            error = self.failure or RunnerCrashed(self.model, exit_code)
        log.info("runner_gone", model=self.model, pid=self.pid, state=self._state, exit_code=exit_code)
        flights = self._all_flights()
        for flight in flights:
            if is_wanted:
                flight.ask_to_end(Ending.PARK)  # we ended it, so its work goes on elsewhere
            self._land(flight, flight.outcome_of_loss(error, company=len(flights) - 1))
        self._link.close()
        self._loaded.set()
        self._answered.set()
        self._gone.set()
        with self._idle:
            self._idle.notify_all()
        self._on_change()

    def _crash(self, exit_code: int | None) -> KeepwarmError:
        if exit_code == -signal.SIGKILL and self._oom_kills() > self._oom_kills_before:
            return RunnerOutOfMemory(self.model)
        if self.ready is not None:
            return RunnerCrashed(self.model, exit_code)
        return ModelLoadBroken(f"'{self.model}' can't be loaded: its runner died (exit code {exit_code}).")

    # ---- flights

    def _flight(self, key: int) -> Flight | None:
        with self._lock:
            return self._flights.get(key)

    def _all_flights(self) -> list[Flight]:
        with self._lock:
            return list(self._flights.values())

    def _end(self, flight: Flight, ending: Ending) -> None:
        if flight.ask_to_end(ending):
            self._tell_cancel(flight)

    def _abandon(self, flight: Flight, outcome: Outcome) -> None:
        """Resolve now, whatever the runner still does; its slot comes back with its Done."""
        flight.resolve(outcome)
        self._tell_cancel(flight)

    def _land(self, flight: Flight, outcome: Outcome) -> None:
        with self._lock:
            if self._flights.pop(flight.key, None) is None:
                return
        self.release_slot(flight.priority)  # before the caller goes on: it may want the next slot at once
        flight.resolve(outcome)

    def _tell_cancel(self, flight: Flight) -> None:
        with self._begin_lock:
            self._tell(Cancel(flight.key))

    def _tell(self, message: ToRunner) -> None:
        try:
            self._link.send(message)
        except LinkClosed:
            log.info("runner_deaf", model=self.model, pid=self.pid)  # its end will settle what is in flight

    def _move_to(self, state: RunnerState) -> None:
        """The one place that changes the state; the caller holds the lock."""
        if state not in RUNNER_NEXT[self._state]:
            raise AssertionError(f"A runner never goes from {self._state} to {state}.")
        self._state = state
        self._since_ms = self._clock.now_ms()


class RunnerSlot:
    """A reserved place in a runner; used once, by `run` or by `give_back`."""

    def __init__(self, runner: Runner, priority: Priority, model: str) -> None:
        self._runner = runner
        self._model = model
        self._priority = priority
        self._is_spent = False

    @property
    def fingerprint(self) -> str:
        of_runner = self._runner.fingerprint
        return of_runner if self._model == self._runner.model else adapter_fingerprint(of_runner, self._model)

    @property
    def runner_model(self) -> str:
        return self._runner.model

    def run(self, attempt: Attempt) -> Outcome:
        """Generate and publish until the outcome; blocks. Never raises for what happens to the runner."""
        if self._is_spent:
            raise RuntimeError("A slot runs one attempt.")
        self._is_spent = True
        return self._runner.run_in_taken_slot(attempt, self._priority)

    def give_back(self) -> None:
        if not self._is_spent:
            self._is_spent = True
            self._runner.release_slot(self._priority)


def _order(flight: Flight, priority: Priority, *, of: str) -> Generate | Encode:
    """`of`: the runner's model; what was asked from another one is for an adapter over its weights."""
    attempt = flight.attempt
    adapter = "" if attempt.model == of else attempt.model
    if isinstance(attempt.request, EncodingRequest):
        return Encode(key=flight.key, request=attempt.request, published_rows=attempt.published_rows, adapter=adapter)
    return Generate(
        key=flight.key,
        request=attempt.request,
        forced_ids=attempt.forced_ids,
        emitted_text=attempt.emitted_text,
        priority=priority,
        adapter=adapter,
    )


def _outcome_of(flight: Flight, end: Done | Rejected) -> Outcome:
    if isinstance(end, Rejected):
        return Failed(error=end.error, is_retryable=False)
    return flight.outcome_of(end)
