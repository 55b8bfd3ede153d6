"""The worker's handle of one runner process: what the pool asks of it, and the slots in which attempts run.

It puts the parts together and has no state of its own: `runner_lifecycle` has the state and the places, `flights` what
is in flight, `publisher` the way of tokens into the store, `watchdog` the judgement of silence and death, and
`runner_reader` the thread that drives them all.

Locks: a flight is begun and cancelled under the lock of its message, then that of the table of flights. The lock of the
lifecycle is never held together with one of these.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from tasks.errors import KeepwarmError, RunnerCrashed
from tasks.fleet import RunnerReport, RunnerState
from tasks.jobs import JobId, Priority
from tasks.ports import Attempt, Outcome, Parked
from tasks.store.connection import STREAM_PATIENCE_S
from workers.clock import Clock
from workers.flight import Flight
from workers.flights import Flights
from workers.lease_keeper import RunningAttempt
from workers.messages import OpenSlots, Ready, Shutdown
from workers.model_files import adapter_fingerprint
from workers.oom import kernel_oom_kills
from workers.publisher import Publisher
from workers.runner_lifecycle import GONE, RunnerLifecycle
from workers.runner_link import RunnerLink, Teller
from workers.runner_reader import RunnerReader
from workers.token_sink import TokenSink
from workers.watchdog import Watchdog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """How long a runner may be silent, in seconds."""

    stall_s: float  # no frame while something is in flight
    load_stall_s: float  # no progress while loading
    publish_s: float = STREAM_PATIENCE_S  # the store takes no tokens; then the attempts fail and may be retried


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
        self._telling_open = threading.Lock()
        self._lifecycle = RunnerLifecycle(slots=slots, clock=clock, on_change=on_change)
        self._tell = Teller(model, link)
        self._flights = Flights(model=model, clock=clock, tell=self._tell)
        self._watchdog = Watchdog(
            model=model,
            stall_s=limits.stall_s,
            load_stall_s=limits.load_stall_s,
            monotonic_s=clock.monotonic_s,
            oom_kills=oom_kills,
        )
        self._reader = RunnerReader(
            model=model,
            link=link,
            lifecycle=self._lifecycle,
            flights=self._flights,
            publisher=Publisher(
                sink=sink,
                flights=self._flights,
                clock=clock,
                patience_s=limits.publish_s,
                give_up=self._lifecycle.stop_wanted,
            ),
            watchdog=self._watchdog,
            clock=clock,
        )

    def start(self) -> None:
        self._reader.start()

    # ---- what it is

    @property
    def pid(self) -> int:
        return self._link.pid

    @property
    def state(self) -> RunnerState:
        return self._lifecycle.state

    @property
    def ready(self) -> Ready | None:
        return self._reader.ready

    @property
    def failure(self) -> KeepwarmError | None:
        """Why it crashed or did not load."""
        return self._reader.failure

    @property
    def in_flight(self) -> int:
        """Attempts that hold a place, whether they have begun or not."""
        return self._lifecycle.in_flight

    @property
    def free_slots(self) -> int:
        """Places for an attempt of any priority."""
        return self._lifecycle.room(Priority.BATCH)

    @property
    def urgent_slots(self) -> int:
        """Places for an attempt that is more urgent than batch work: the free ones, and those that batch work holds."""
        return self._lifecycle.room(Priority.DEFAULT)

    def report(self, bytes_held: int, *, state: RunnerState | None = None) -> RunnerReport:
        """`state`: what the owner has decided already, when that is ahead of the process."""
        return self._lifecycle.report(
            pid=self.pid,
            model=self.model,
            bytes_held=bytes_held,
            progress=1.0 if self.ready else self._watchdog.progress,
            state=state,
        )

    def in_flight_of(self, model: str) -> int:
        """Attempts of this model alone that have begun: of an adapter, or of the runner's own model."""
        return self._flights.count_of(model)

    def running_attempts(self) -> list[RunningAttempt]:
        """What is in flight, with the engine steps since it began: the proof of life for its lease."""
        return self._flights.running_attempts()

    # ---- load

    @property
    def has_read(self) -> bool:
        """Whether its load needs the disk no longer."""
        return self._lifecycle.has_read

    def wait_loaded(self) -> Ready:
        """Block until the model is loaded. Raises the reason when it isn't: ModelLoadFailed or RunnerCrashed."""
        return self._reader.wait_loaded()

    def wait_answering(self, timeout_s: float) -> bool:
        """Block until it has put out something, or is gone; False after the timeout."""
        return self._reader.wait_answering(timeout_s)

    def open(self, *, closed_slots: int = 0, slot_bytes: int = 0) -> bool:
        """Starting → ready, once the owner has accounted for its memory: without that of some slots, of which each will
        take so many bytes when it is opened. False when it is gone by now."""
        if closed_slots:
            self._tell(OpenSlots(self.slots - closed_slots))
        return self._lifecycle.open(closed_slots=closed_slots, slot_bytes=slot_bytes)

    @property
    def closed_slots(self) -> int:
        return self._lifecycle.closed_slots

    @property
    def slot_bytes(self) -> int:
        """What one more open slot will take."""
        return self._lifecycle.slot_bytes

    @property
    def is_full(self) -> bool:
        """Whether as many attempts are here as slots are open, whatever their priority."""
        return self.in_flight >= self.slots - self.closed_slots

    def open_one(self) -> None:
        """Count one more slot as open, whose memory the owner has accounted for; `tell_open` comes next."""
        self._lifecycle.widen()

    def tell_open(self) -> None:
        """Tell the process how many slots are open. Blocks while it does not read."""
        with self._telling_open:  # so that no smaller number comes behind a larger one
            self._tell(OpenSlots(self.slots - self.closed_slots))

    # ---- work

    def take_slot(self, priority: Priority, model: str | None = None) -> RunnerSlot | None:
        """Reserve a place for one attempt at the runner's own model, or at this adapter of it; None when full for its
        priority, or not ready."""
        if not self._lifecycle.take_place(priority):
            return None
        return RunnerSlot(self, priority, model or self.model)

    def cancel(self, job_id: JobId) -> bool:
        """End all attempts of the job here; False when there are none."""
        return self._flights.cancel(job_id)

    def lose(self, job_id: JobId, number: int) -> None:
        """Give up this attempt, if it is here: the job is no longer its own."""
        self._flights.lose(job_id, number)

    def park_all(self) -> None:
        """Stop every sequence at a token boundary; attempts that begin from now on are parked at once."""
        self._flights.park_all()

    # ---- end

    def begin_drain(self) -> None:
        """Take no new work, for good. Running work goes on."""
        self._lifecycle.drain()

    def wait_idle(self, timeout_s: float) -> bool:
        """True when no slot is taken any more, or the process is gone."""
        return self._lifecycle.wait_idle(timeout_s)

    def stop(self, grace_s: float) -> None:
        """End the process: asked first when it is ready, killed when it is loading or does not listen."""
        if self._lifecycle.is_settled:
            return
        is_loading = self.state is RunnerState.STARTING
        self._lifecycle.stop_wanted.set()
        self.begin_drain()
        if is_loading:
            self._reader.kill()
        else:
            self._tell(Shutdown())
        if not self._lifecycle.wait_settled(grace_s):
            self._reader.kill()

    def has_exited(self) -> bool:
        """Whether the process has ended. To ask is to bury it: until then its pid lasts, and so does what it held."""
        return self._link.exit_code() is not None

    def wait_gone(self, timeout_s: float | None = None) -> bool:
        """Block until the process is gone and everything that was in flight has its outcome."""
        return self._lifecycle.wait_settled(timeout_s)

    # ---- slots, for RunnerSlot

    def run_in_taken_slot(self, attempt: Attempt, priority: Priority) -> Outcome:
        begun = self._flights.begin(attempt, priority, self._refusal)
        if not isinstance(begun, Flight):
            self.release_slot(priority)
            return begun
        log.info(  # while the runner is at work already: a line costs as much time as handing the work over
            "attempt_started",
            job_id=attempt.job_id,
            attempt=attempt.number,
            model=attempt.model,
            forced=len(attempt.forced_ids),
        )
        return begun.wait()

    def release_slot(self, priority: Priority) -> None:
        self._lifecycle.give_back_place(priority)

    def _refusal(self, flight: Flight) -> Outcome | None:
        is_gone = self.state in GONE  # asked first: before that state comes, its reason is there, and so is the wish
        failure = self.failure
        if self._lifecycle.stop_wanted.is_set() and failure is None:
            return Parked()
        if is_gone:
            error = failure or RunnerCrashed(self.model, self._link.exit_code())
            return flight.outcome_of_loss(error, company=1)  # it came too late to be to blame
        return None


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
