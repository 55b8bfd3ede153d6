"""The one thread that reads what a runner process says, watches over it, and settles its end.

It takes everything that has arrived, publishes it as one batch with one chunk per sequence, and only then resolves the
sequences that ended: nobody learns an outcome before its tokens are in the store. The last chunk of a sequence that
ended by itself is part of its outcome: one call to the store writes both. While a batch is being published, frames pile
up in the socket and become the next, larger batch.

It sees the end of the stream, deadlines, and silence. Everything that ends a runner goes through the process's end:
kill it, and this thread resolves what was in flight. Only this thread writes `ready` and `failure`, so no lock guards
them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import assert_never

import structlog

from tasks.errors import KeepwarmError, ModelLoadFailed, RunnerCrashed
from tasks.fleet import RunnerState
from tasks.ports import Failed, Outcome
from workers.clock import Clock
from workers.flight import Ending, Flight
from workers.flights import Flights
from workers.messages import (
    READ_SHARE,
    Done,
    Encoded,
    Fatal,
    FromRunner,
    LoadFailed,
    LoadProgress,
    Ready,
    Rejected,
    Step,
    TokenOut,
)
from workers.publisher import Publisher
from workers.runner_lifecycle import RunnerLifecycle
from workers.runner_link import LinkClosed, RunnerLink
from workers.watchdog import Watchdog

log = structlog.get_logger(__name__)

WATCH_INTERVAL_S = 0.25  # how late a deadline or a silence may be noticed
EXIT_PATIENCE_S = 2.0  # between the end of the stream and the end of the process


class RunnerReader:
    """Used once: `start` it, and it reads until the process is gone and the lifecycle is settled."""

    def __init__(
        self,
        *,
        model: str,
        link: RunnerLink,
        lifecycle: RunnerLifecycle,
        flights: Flights,
        publisher: Publisher,
        watchdog: Watchdog,
        clock: Clock,
    ) -> None:
        self._model = model
        self._link = link
        self._lifecycle = lifecycle
        self._flights = flights
        self._publisher = publisher
        self._watchdog = watchdog
        self._clock = clock
        self._killed_at_s: float | None = None
        self._loaded = threading.Event()  # Ready came, or it never will
        self._answered = threading.Event()  # the first output came, or it never will
        self.ready: Ready | None = None
        self.failure: KeepwarmError | None = None  # why it crashed or did not load
        self._last_words = ""  # the runner's own, before it ended
        self._thread = threading.Thread(target=self._read, name=f"runner-{model}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ---- for other threads

    def wait_loaded(self) -> Ready:
        """Block until the model is loaded. Raises the reason when it isn't: ModelLoadFailed or RunnerCrashed."""
        self._loaded.wait()
        if self.ready is None:
            raise self.failure or ModelLoadFailed(f"The load of '{self._model}' was stopped.")
        return self.ready

    def wait_answering(self, timeout_s: float) -> bool:
        """Block until it has put out something, or is gone; False after the timeout."""
        return self._answered.wait(timeout_s)

    def kill(self) -> None:
        """End the process, and the reading soon after, whether it dies or not."""
        if self._killed_at_s is None:
            self._killed_at_s = self._clock.monotonic_s()
        self._link.kill()

    # ---- read

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
            log.info("runner_link_closed", model=self._model, pid=self._link.pid, reason=str(closed))
        except Exception:
            log.exception("runner_reader_failed", model=self._model, pid=self._link.pid)
        self._conclude()

    def _take(self, messages: Sequence[FromRunner]) -> None:
        ends: list[Done | Rejected] = []
        for message in messages:
            self._take_one(message, ends)
        self._publisher.publish(
            ended={end.key for end in ends if isinstance(end, Done) and end.finish_reason is not None}
        )
        for end in ends:
            if flight := self._flights.of_key(end.key):
                self._land(flight, _outcome_of(flight, end))
        self._watchdog.note_sign()  # after publishing: a slow store is not a silent runner

    def _take_one(self, message: FromRunner, ends: list[Done | Rejected]) -> None:
        match message:
            case Step(outputs=outputs):
                self._take_step(outputs, ends)
            case Rejected():
                ends.append(message)
            case LoadProgress(fraction=fraction):
                self._watchdog.note_progress(fraction)
                if fraction >= READ_SHARE:
                    self._lifecycle.note_read()
            case Ready():
                self.ready = message
                self._loaded.set()
            case LoadFailed(reason=reason):
                self.failure = ModelLoadFailed(reason)
            case Fatal(reason=reason):
                log.error("runner_fatal", model=self._model, pid=self._link.pid, reason=reason)
                self._last_words = reason
            case _:
                assert_never(message)

    def _take_step(self, outputs: Sequence[TokenOut | Encoded | Done], ends: list[Done | Rejected]) -> None:
        for flight in self._flights.all():
            flight.steps += 1
        if outputs:
            self._answered.set()
        for output in outputs:
            if isinstance(output, Done):
                ends.append(output)
            elif addressee := self._flights.of_key(output.key):
                addressee.add(output)

    def _land(self, flight: Flight, outcome: Outcome) -> None:
        if self._flights.remove(flight):
            self._lifecycle.give_back_place(flight.priority)  # before the caller goes on: it may want it at once
            flight.resolve(outcome)

    # ---- watch

    def _watch(self) -> None:
        self._flights.expire()
        if self.failure is None:
            self.failure = self._watchdog.find_stall(
                is_loaded=self.ready is not None, busy_since_s=self._flights.busy_since_s
            )
            if self.failure is not None:
                self.kill()

    def _is_beyond_hope(self) -> bool:
        """No end of the stream will come: its socket outlived it in some child, or the kernel can't end it."""
        if self._link.exit_code() is not None:
            return True
        return self._killed_at_s is not None and self._clock.monotonic_s() - self._killed_at_s > EXIT_PATIENCE_S

    # ---- the end

    def _conclude(self) -> None:
        """The process is gone or must go: settle its state first, then everything that was in flight."""
        exit_code = self._link.wait_exit(EXIT_PATIENCE_S)
        if exit_code is None:
            self._link.kill()
            exit_code = self._link.wait_exit(EXIT_PATIENCE_S)
        is_wanted = self._lifecycle.stop_wanted.is_set() and self.failure is None
        if not is_wanted and self.failure is None:
            self.failure = self._watchdog.cause_of_death(
                exit_code, is_loaded=self.ready is not None, last_words=self._last_words
            )
        self._lifecycle.end(RunnerState.STOPPED if is_wanted else RunnerState.CRASHED)  # its reason is there by now
        error = self.failure or RunnerCrashed(self._model, exit_code)
        log.info("runner_gone", model=self._model, pid=self._link.pid, state=self._lifecycle.state, exit_code=exit_code)
        flights = self._flights.all()
        for flight in flights:
            if is_wanted:
                flight.ask_to_end(Ending.PARK)  # we ended it, so its work goes on elsewhere
            self._land(flight, flight.outcome_of_loss(error, company=len(flights) - 1))
        self._link.close()
        self._loaded.set()
        self._answered.set()
        self._lifecycle.settle()


def _outcome_of(flight: Flight, end: Done | Rejected) -> Outcome:
    if isinstance(end, Rejected):
        return Failed(error=end.error, is_retryable=False)
    return flight.outcome_of(end)
