"""A runner process played by a script, a sink in memory, and clocks that stand still: runners without processes."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tasks.errors import StoreUnavailable
from tasks.generation import GenerationRequest
from tasks.jobs import JobId
from tasks.ports import Attempt, Finished, Outcome
from tasks.store.token_writer import Chunk
from tasks.store.verdict import Verdict
from tasks.stream_events import Tokens
from workers.clock import Clock
from workers.messages import Cancel, Done, FromRunner, Generate, Ready, Shutdown, Step, ToRunner
from workers.runner import RunnerSlot
from workers.runner_link import LinkClosed

PATIENCE_S = 10.0  # for what must happen soon; only a failing test waits that long
MIB = 1024**2


class ManualClock:
    """Moves only when told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

    def clock(self) -> Clock:
        return Clock(now_ms=lambda: int(self.seconds * 1000), monotonic_s=lambda: self.seconds)


class Changes:
    """Counts calls of `on_change` and lets a test wait for what they bring about."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.count = 0

    def __call__(self) -> None:
        with self._condition:
            self.count += 1
            self._condition.notify_all()

    def wait_until(self, predicate: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
        with self._condition:
            assert self._condition.wait_for(predicate, timeout_s), "it did not happen in time"


class Told(list[ToRunner]):
    """What a runner was told."""

    @property
    def cancelled(self) -> list[int]:
        """Keys of the flights that it is to end."""
        return [message.key for message in self if isinstance(message, Cancel)]


class ScriptedLink:
    """The other end of a RunnerLink. Obeys Shutdown and Cancel unless it is deaf; all else is said by the test."""

    def __init__(self, pid: int = 4000) -> None:
        self.pid = pid
        self.is_deaf = False  # ignores Shutdown and Cancel, like a process that hangs
        self.is_unkillable = False  # like a process that waits for a device for ever
        self.was_killed = threading.Event()
        self.sent: list[ToRunner] = []
        self._inbox: queue.SimpleQueue[Sequence[FromRunner] | None] = queue.SimpleQueue()
        self._exit_code: int | None = None
        self._condition = threading.Condition()
        self._steps = 0

    # ---- as the process

    def say(self, *messages: FromRunner) -> None:
        self._inbox.put(messages)

    def step(self, *outputs: object) -> None:
        self._steps += 1
        self.say(Step(self._steps, outputs))  # type: ignore[arg-type]

    def load(
        self,
        *,
        weight_bytes: int = MIB,
        slots: int = 2,
        kv_bytes: int = 0,
        untouched_bytes: int = 0,
        broken_adapters: dict[str, str] | None = None,
    ) -> None:
        self.say(
            Ready(
                context_length=64,
                slots=slots,
                load_ms=1,
                weight_bytes=weight_bytes,
                kv_bytes=kv_bytes,
                compute_bytes=0,
                untouched=((0, untouched_bytes),) if untouched_bytes else (),
                broken_adapters=broken_adapters or {},
            )
        )

    def finish(self, key: int, reason: str | None = "stop") -> None:
        self.step(Done(key=key, finish_reason=reason, prompt_tokens=3, completion_tokens=2))  # type: ignore[arg-type]

    def tick(self) -> None:
        """Wake the reader, so that it looks at the clock."""
        self._inbox.put(())

    def hang_up(self) -> None:
        """The stream ends; the process does not."""
        self._inbox.put(None)

    def exit(self, code: int) -> None:
        with self._condition:
            if self._exit_code is None:
                self._exit_code = code
                self._inbox.put(None)
            self._condition.notify_all()

    def await_sent(self, kind: type, count: int = 1) -> list[ToRunner]:
        """The messages of this kind, once there are `count`."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self._of(kind)) >= count, PATIENCE_S), f"no {kind.__name__}"
            return self._of(kind)

    def await_generate(self, count: int = 1) -> Generate:
        message = self.await_sent(Generate, count)[count - 1]
        assert isinstance(message, Generate)
        return message

    def _of(self, kind: type) -> list[ToRunner]:
        return [message for message in self.sent if isinstance(message, kind)]

    # ---- as RunnerLink

    def send(self, message: ToRunner) -> None:
        with self._condition:
            if self._exit_code is not None:
                raise LinkClosed("gone")
            self.sent.append(message)
            self._condition.notify_all()
        if self.is_deaf:
            return
        if isinstance(message, Shutdown):
            self.exit(0)
        elif isinstance(message, Cancel):
            self.finish(message.key, None)

    def receive(self, timeout_s: float) -> Sequence[FromRunner]:
        try:
            messages = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return ()
        if messages is None:
            raise LinkClosed("end of stream")
        return messages

    def exit_code(self) -> int | None:
        return self._exit_code

    def wait_exit(self, timeout_s: float) -> int | None:
        with self._condition:
            if not self.is_unkillable:
                self._condition.wait_for(lambda: self._exit_code is not None, timeout_s)
            return self._exit_code

    def kill(self) -> None:
        self.was_killed.set()
        if not self.is_unkillable:
            self.exit(-signal.SIGKILL)

    def close(self) -> None:
        pass


@dataclass
class MemorySink:
    """Keeps the chunks; answers with the verdicts that the test has set per job."""

    chunks: list[Chunk] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)  # chunks per call
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    failures_left: int = 0
    gate: threading.Event = field(default_factory=threading.Event)  # closed: the store hangs
    has_called: threading.Event = field(default_factory=threading.Event)
    condition: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.gate.set()

    def append(self, chunks: Sequence[Chunk]) -> list[Verdict]:
        self.has_called.set()
        assert self.gate.wait(PATIENCE_S)
        with self.condition:
            self.calls.append(len(chunks))
            self.condition.notify_all()
        if self.failures_left:
            self.failures_left -= 1
            raise StoreUnavailable("no store")
        verdicts = [self.verdicts.get(chunk.job_id, Verdict.OK) for chunk in chunks]
        self.chunks += [chunk for chunk, verdict in zip(chunks, verdicts, strict=True) if verdict is not Verdict.LOST]
        return verdicts

    def await_calls(self, count: int) -> bool:
        with self.condition:
            return self.condition.wait_for(lambda: len(self.calls) >= count, PATIENCE_S)

    def text_of(self, job_id: str) -> str:
        return "".join(
            chunk.event.text for chunk in self.chunks if chunk.job_id == job_id and isinstance(chunk.event, Tokens)
        )

    def ids_of(self, job_id: str) -> tuple[int, ...]:
        return tuple(
            token
            for chunk in self.chunks
            if chunk.job_id == job_id and isinstance(chunk.event, Tokens)
            for token in chunk.event.ids
        )


def make_attempt(
    job_id: str = "job_1",
    *,
    number: int = 1,
    model: str = "m",
    last_seq: int = 0,
    emitted_text: str = "",
    forced_ids: tuple[int, ...] = (),
    deadline_ms: int | None = None,
    max_tokens: int | None = None,
    prompt: str = "hello",
) -> Attempt:
    return Attempt(
        job_id=JobId(job_id),
        number=number,
        model=model,
        request=GenerationRequest(model=model, prompt=prompt, max_tokens=max_tokens),
        last_seq=last_seq,
        forced_ids=forced_ids,
        emitted_text=emitted_text,
        deadline_ms=deadline_ms,
    )


class Running:
    """An attempt that runs in a thread of its own, as in Celery's pool. `sink` gets what goes out with its end."""

    def __init__(self, slot: RunnerSlot, attempt: Attempt, sink: MemorySink | None = None) -> None:
        self._sink = sink
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run, args=(slot, attempt), daemon=True)
        self._thread.start()

    def _run(self, slot: RunnerSlot, attempt: Attempt) -> None:
        outcome = slot.run(attempt)
        if self._sink is not None and isinstance(outcome, Finished) and outcome.tail is not None:
            self._sink.chunks.append(outcome.tail)
        self._outcome = outcome

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def outcome(self) -> Outcome:
        self._thread.join(PATIENCE_S)
        assert self._outcome is not None, "the attempt has no outcome yet"
        return self._outcome
