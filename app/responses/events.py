"""The numbered events of a response, derived from its job's token stream alone. Pure.

    created → (background: queued) → in_progress → items and their deltas → completed | incomplete | failed

No event depends on the time or on who reads: the n-th event is the same on every front, before and after a restart.
That is what `starting_after` rests on. A cancelled response ends with response.incomplete and the status cancelled,
for OpenAI has no event of that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from app import sse
from app.errors import StreamReset
from app.responses.objects import closing_object, ended_status, is_complete, open_object
from app.responses.output import Event, Output
from tasks.generation import JsonObject
from tasks.jobs import JobId
from tasks.responses import Outcome, StoredResponse
from tasks.stream_events import End, Reset, Tokens

_encode = msgspec.json.Encoder().encode
_LAST = {"completed": "response.completed", "failed": "response.failed"}  # by status; response.incomplete otherwise


class ResponseEvents:
    """One reading of a response. Events up to number `after` are counted and not returned; -1 returns all."""

    def __init__(self, response: StoredResponse, job_id: JobId, created_ms: int, *, after: int = -1) -> None:
        self._response = response
        self._job_id = job_id
        self._created_ms = created_ms
        self._output = Output(job_id, response.tools)
        self._after = after
        self._has_begun = False
        self.last = -1  # number of the newest event
        self.is_over = False

    def opening(self) -> bytes:
        """What is true once the job is admitted."""
        status = "queued" if self._response.is_background else "in_progress"
        events = [("response.created", self._snapshot(status))]
        if self._response.is_background:
            events.append(("response.queued", self._snapshot(status)))
            return self._worded(events)
        return self._worded(events) + self.begun()

    def begun(self) -> bytes:
        """An attempt is running. Said once."""
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._worded([("response.in_progress", self._snapshot("in_progress"))])

    def tokens(self, event: Tokens) -> bytes:
        return self.begun() + self._worded(self._output.feed(event.text, event.logprobs))

    def reset(self, event: Reset) -> bytes:
        """Text that was told can't be taken back: then the stream ends here, also for those who read it later."""
        if not self._output.items:
            self._output = Output(self._job_id, self._response.tools)
            return b""
        self.is_over = True
        error = StreamReset(event.reason)
        members = {"code": error.code, "message": str(error), "param": None}
        return self._worded([("error", members)])

    def end(self, end: End, outcome: Outcome) -> bytes:
        self.is_over = True
        return self.begun() + self._worded(self._closing(end, outcome))

    def trouble(self, code: str, message: str) -> bytes:
        """What is no event of the response: it has the number of the last one, so that a reader goes on behind it."""
        members = {"type": "error", "code": code, "message": message, "param": None}
        return sse.event("error", _encode(members | {"sequence_number": max(self.last, 0)}))

    def _closing(self, end: End, outcome: Outcome) -> Iterator[Event]:
        yield from self._output.finish(is_complete=is_complete(end))
        last = closing_object(self._response, self._job_id, outcome, end, self._output.items)
        yield _LAST.get(ended_status(end), "response.incomplete"), {"response": last}

    def _snapshot(self, status: str) -> JsonObject:
        return {"response": open_object(self._response, self._job_id, self._created_ms, status)}

    def _worded(self, events: Iterable[Event]) -> bytes:
        parts: list[bytes] = []
        for name, members in events:
            self.last += 1
            if self.last > self._after:
                head = {"type": name, "sequence_number": self.last}
                parts.append(sse.event(name, _encode(head | members)))
        return b"".join(parts)
