"""What a single connection may cost: how many there are, how large a head is, how slowly a client may send, and for
how long it may take nothing of its answer.

uvicorn bounds none of these. This is its protocol with limits, so that clients who hold connections open, drip a
request byte by byte or send endless headers are turned away, and health checks go on being answered. One timer per
process looks after all connections; a request that behaves pays for a few attribute writes.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.closing import Closing
from app.connection_watch import MAX_LINGERING, RESERVE, TICK_S, Watch
from app.error_handlers import ErrorFacts
from app.middleware import route_of
from app.uptake import Uptake

LINGER_S = 2.0  # a refused client may go on sending this long, so that it reads why (RFC 9112, 9.6)
RESERVED_PATHS = frozenset({b"/livez", b"/readyz", b"/metrics"})
RESERVE_GRACE_S = 2.0
STALLED = "client_stalled"
MIN_BYTES_PER_S = 500  # of a body, beyond the grace; Apache's mod_reqtimeout has the same default
MAX_JOINED_BYTES = 16 * 1024  # of a body that is copied behind its head
_OTHER_FILES = MAX_LINGERING + 64  # and the store, logs, uploads
_HEAD = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    max_connections: int
    max_head_bytes: int
    grace_s: float  # for a whole head, and for a body beyond MIN_BYTES_PER_S
    stall_s: float  # a client that takes nothing of its answer for so long is cut off


def connections_within_reach(wished: int) -> int:
    """Raise this process's limit on open files as far as it may, and return how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        soft = max(soft, wished + RESERVE + _OTHER_FILES) if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fitting = max(1, soft - RESERVE - _OTHER_FILES)
    if fitting < wished:
        structlog.get_logger(__name__).warning("fewer_connections", wished=wished, fitting=fitting, open_files=soft)
    return min(wished, fitting)


def protocol_class(
    limits: ConnectionLimits, closing: Closing, on_refused: Callable[[str], None]
) -> type[GuardedProtocol]:
    """For one server: uvicorn makes protocols from a class alone. `on_refused` takes the code of every refusal."""
    members = {"limits": limits, "closing": closing, "watch": Watch[GuardedProtocol](on_refused)}
    return type("GuardedProtocol", (GuardedProtocol,), members)


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    limits: ConnectionLimits
    closing: Closing
    watch: Watch[GuardedProtocol]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.uptake = Uptake(transport)
        self._raw = transport
        self._patient = _PatientTransport(self, transport)
        self.transport = self._patient  # type: ignore[assignment]
        self._grace_s = self.limits.grace_s
        self._since: float | None = time.monotonic()  # since when the client owes us bytes
        self._num_received = 0  # of the body that it owes
        self._num_unparsed = 0  # bytes that ended no part of the request
        self._head_bytes = 0
        self._is_in_head = True
        self._is_refused = False
        self.lingers_until: float | None = None
        self._is_excess = self.watch.num_heard >= self.limits.max_connections
        if self._is_excess:
            self._grace_s = RESERVE_GRACE_S
        self.watch.add(self)
        if self._is_excess and (longest := self.watch.reserve(self)) is not None:
            longest.refuse_as_excess()

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.lingers_until is not None:
            return
        if self._since is None and ((cycle := self._request()) is None or cycle.response_complete):
            self._expect_bytes()
        self._num_unparsed += len(data)
        super().data_received(data)
        if self._num_unparsed > self.limits.max_head_bytes and not self._is_refused:
            self.refuse(_large_head(self.limits.max_head_bytes))

    def send_400_response(self, msg: str) -> None:
        self.refuse(ErrorFacts(status=400, code="invalid_http", message=msg))

    # What the parser found

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._is_in_head = 0, True
        self._expect_bytes()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if not self._is_in_head and self._head_bytes > self.limits.max_head_bytes:  # trailers
            self.refuse(_large_head(self.limits.max_head_bytes))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_refused:
            return
        if (objection := self._objection()) is not None:
            self.refuse(objection)
            return
        self._num_unparsed, self._is_in_head = 0, False
        self._expect_bytes()
        super().on_headers_complete()
        if self._is_excess:
            self.watch.release(self)
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._is_refused:
            return
        self._num_unparsed = 0
        self._num_received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused:
            return
        self._num_unparsed = 0
        self._since = None
        super().on_message_complete()

    # Limits

    def check(self, now: float) -> None:
        """Called every tick: turn away a client that is too slow, cut off one that has stopped reading."""
        if self.lingers_until is not None:
            if now >= self.lingers_until:
                self._raw.abort()
            return
        self.uptake.look(TICK_S)
        # A task that waits for room to send hears nothing of the end: cut before it is, it ends the client's job.
        stall_s = min(TICK_S, self.limits.stall_s) if self.closing.is_due else self.limits.stall_s
        if self.uptake.stalled_s >= stall_s:
            self._cut_off()
            return
        if self._since is None:
            return
        if self.flow.read_paused:  # it is we who don't read
            self._since += TICK_S
        elif now - self._since > self._grace_s + self._num_received / MIN_BYTES_PER_S:
            if self._is_excess:
                self.refuse_as_excess()
            elif self._is_in_head and not self._num_unparsed:
                self._raw.close()  # it never asked for anything
            else:
                self.refuse(_too_slow(self._grace_s))

    def _cut_off(self) -> None:
        """For what answers it, the client has left."""
        cycle = self._request()
        self.watch.cut_off(
            STALLED,
            route=None if cycle is None else route_of(dict(cycle.scope)),
            stalled_s=self.uptake.stalled_s,
            taken_bytes=self.uptake.num_taken,
            waiting_bytes=self.uptake.num_waiting,
        )
        self._raw.abort()

    def refuse_as_excess(self) -> None:
        self.refuse(_too_many(self.limits.max_connections))

    def refuse(self, facts: ErrorFacts) -> None:
        """Say why and hang up; what the application is doing for this request ends as for a client that left."""
        self._is_refused = True
        self.watch.refused(facts.code)
        if self._can_answer():
            body = msgspec.json.encode(facts.openai_body())
            after = b"" if facts.retry_after_s is None else b"retry-after: %d\r\n" % facts.retry_after_s
            reason = _REASONS[facts.status]
            self.transport.write(_HEAD % (facts.status, reason, len(body), after) + body)
        self.linger()
        if (cycle := self._request()) is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def linger(self) -> None:
        """Send nothing more and read on for a moment: closing at once could destroy our answer on its way."""
        if self.lingers_until is None and not self._raw.is_closing():
            if not self.watch.let_linger(self):
                self._patient.flush()
                self._raw.close()
                return
            self.lingers_until = time.monotonic() + LINGER_S
            self._patient.flush()
            self._raw.write_eof()
            self.flow.resume_reading()

    def _objection(self) -> ErrorFacts | None:
        """Why a request is refused by its head."""
        if self._head_bytes > self.limits.max_head_bytes:
            return _large_head(self.limits.max_head_bytes)
        if self._is_excess and self.url.partition(b"?")[0] not in RESERVED_PATHS:
            return _too_many(self.limits.max_connections)
        return None

    @property
    def owes_body(self) -> bool:
        return self._since is not None and not self._is_in_head

    def _can_answer(self) -> bool:
        """Whether nothing of another answer is on its way."""
        cycle = self._request()
        if cycle is None:
            return True
        return cycle.response_complete if self._is_in_head else not cycle.response_started

    def _request(self) -> RequestResponseCycle | None:
        """The newest one whose head is complete; there is none at first."""
        return self.cycle

    def _expect_bytes(self) -> None:
        self._since = time.monotonic()
        self._num_received = 0

    def _count_head(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes


class _PatientTransport:
    """A transport that counts what is written, and whose `close` lingers while the client is still sending; the rest is
    the transport itself. The head of an answer is sent with its first words if they come in the same turn of the loop.
    Words never wait: where many streams have news at once, the first ones would wait for the last."""

    def __init__(self, protocol: GuardedProtocol, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._uptake = protocol.uptake
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        self._uptake.wrote(len(data))
        if data.startswith(b"HTTP/1.1 ") and not self._head:
            self._head = data
            self._loop.call_soon(self.flush)
        elif self._head and len(data) <= MAX_JOINED_BYTES:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self.flush()
            self._transport.write(data)

    def flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            if not self._transport.is_closing():  # uvloop raises when the connection was lost in between
                self._transport.write(head)

    def close(self) -> None:
        if self._protocol.owes_body:
            self._protocol.linger()
        else:
            self.flush()
            self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


def _too_many(limit: int) -> ErrorFacts:
    message = f"This front has {limit} open connections, and takes no more (KEEPWARM_MAX_CONNECTIONS). Try again soon."
    return ErrorFacts(status=503, code="too_many_connections", message=message, retry_after_s=1)


def _large_head(limit: int) -> ErrorFacts:
    message = f"The request's line and headers have more than {limit} bytes."
    return ErrorFacts(status=431, code="headers_too_large", message=message)


def _too_slow(grace_s: float) -> ErrorFacts:
    message = f"The request did not arrive within {grace_s:g} s, nor its body at {MIN_BYTES_PER_S} bytes per second."
    return ErrorFacts(status=408, code="request_too_slow", message=message)
