"""One attempt in a runner, from Generate to its outcome: its text, its next event number, and how it shall end.

Knows neither the process nor the store. Only the runner's reader thread adds output; any thread may ask for an end
and wait for the outcome.
"""

from __future__ import annotations

import threading
from enum import Enum, auto

from tasks.errors import KeepwarmError
from tasks.generation import TokenLogprob
from tasks.jobs import JobError, Priority, Usage
from tasks.ports import Attempt, Cancelled, Failed, Finished, Outcome, Parked
from tasks.store.token_writer import Chunk
from tasks.stream_events import NumberedEvent, Tokens, Vectors
from workers.messages import Done, Encoded, TokenOut


class Ending(Enum):
    """Why the sequence was asked to stop early."""

    CANCEL = auto()  # by the client
    EXPIRE = auto()  # by its deadline
    PARK = auto()  # by a drain: it goes on elsewhere


class Flight:
    def __init__(self, attempt: Attempt, key: int, priority: Priority) -> None:
        self.attempt = attempt
        self.key = key
        self.priority = priority
        self._text = attempt.emitted_text
        self._next_seq = attempt.last_seq + 1
        self._unpublished: list[TokenOut | Encoded] = []
        self._ending: Ending | None = None
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None
        self._resolved = threading.Event()
        self.steps = 0  # engine steps seen while it was in flight: its proof of life

    @property
    def is_resolved(self) -> bool:
        return self._resolved.is_set()

    def wait(self) -> Outcome:
        """Block until the outcome; the runner's watchdogs bound the wait."""
        self._resolved.wait()
        assert self._outcome is not None
        return self._outcome

    def resolve(self, outcome: Outcome) -> None:
        """The first outcome wins; what comes later changes nothing."""
        with self._lock:
            if self._outcome is None:
                self._outcome = outcome
                self._resolved.set()

    # ---- output

    def add(self, output: TokenOut | Encoded) -> None:
        self._unpublished.append(output)

    def take_chunk(self) -> Chunk | None:
        """All output since the previous chunk as one event; None when there is nothing, or nobody to tell."""
        outputs, self._unpublished = self._unpublished, []
        if not outputs or self.is_resolved:
            return None
        event = _event(outputs)
        chunk = Chunk(self.attempt.job_id, self.attempt.number, self._next_seq, event)
        self._next_seq += 1
        if isinstance(event, Tokens):
            self._text += event.text
        return chunk

    # ---- endings

    def ask_to_end(self, ending: Ending) -> bool:
        """True when this is the first such wish, so that the runner has to be told."""
        with self._lock:
            if self._ending is not None or self._outcome is not None:
                return False
            self._ending = ending
            return True

    def expires_before(self, now_ms: int) -> bool:
        return self.attempt.deadline_ms is not None and self.attempt.deadline_ms <= now_ms

    def outcome_of(self, done: Done) -> Outcome:
        """A sequence that ended by itself is finished, whatever was wished for in the meantime. What it said last and
        was not taken goes out with its end."""
        usage = Usage(
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
            cached_tokens=done.cached_tokens,
        )
        if done.finish_reason is not None:
            tail = self.take_chunk()
            return Finished(text=self._text, finish_reason=done.finish_reason, usage=usage, tail=tail)
        if done.error is not None:
            return Failed(error=done.error, is_retryable=False)
        return self._ended_early(usage)

    def outcome_of_loss(self, error: KeepwarmError, *, company: int = 0) -> Outcome:
        """The runner is gone before the sequence ended: what was wished for happened, otherwise it failed.

        `company`: how many others were in flight with it."""
        if self._ending is not None:
            return self._ended_early(None)
        return Failed(
            error=JobError(code=error.code, message=str(error)), is_retryable=error.is_retryable, company=company
        )

    def _ended_early(self, usage: Usage | None) -> Outcome:
        if self._ending is Ending.CANCEL:
            return Cancelled(text=self._text, usage=usage)
        if self._ending is Ending.EXPIRE:
            return Cancelled(text=self._text, usage=usage, is_expired=True)
        return Parked()  # also when nobody asked: the published tokens are the resume point


def _event(outputs: list[TokenOut | Encoded]) -> NumberedEvent:
    """One event of all outputs; a flight has either tokens or rows."""
    rows = tuple(row for output in outputs if isinstance(output, Encoded) for row in output.rows)
    if rows:
        return Vectors(rows)
    tokens = [output for output in outputs if isinstance(output, TokenOut)]
    ids = tuple(token for output in tokens for token in output.ids)
    logprobs: tuple[TokenLogprob, ...] = tuple(each for output in tokens for each in output.logprobs)
    return Tokens("".join(output.text for output in tokens), ids, logprobs)
