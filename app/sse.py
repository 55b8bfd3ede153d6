"""Server-sent events: the response, its framing, and the watch over the client at the other end.

The chunks are bytes that are ready to send, one per batch of events; lines end in a bare newline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import structlog
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from tasks.errors import KeepwarmError

KEEP_ALIVE = b": keep-alive\n\n"
_log = structlog.get_logger(__name__)

Chunks = AsyncGenerator[bytes, None]


def comment(text: str) -> bytes:
    """A line that clients ignore and people see."""
    return f": {text}\n\n".encode()


def data(payload: bytes) -> bytes:
    """An unnamed event; the payload is JSON on one line."""
    return b"data: " + payload + b"\n\n"


def event(name: str, payload: bytes, seq: int | None = None) -> bytes:
    """A named event; only numbered ones have an id, because an id moves the client's resume point."""
    if seq is None:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), payload)
    return b"event: %b\nid: %d\ndata: %b\n\n" % (name.encode(), seq, payload)


class SseResponse(EventSourceResponse):
    """Sends chunks as they come and closes their generator however the request ends.

    Headers and status are sse-starlette's. Its sending, with a lock, a deadline and a task group around every chunk, is
    not: that took more time than all else in a stream, and whoever makes the chunks watches the client itself."""

    def __init__(self, chunks: Chunks, headers: Mapping[str, str]) -> None:
        super().__init__(chunks, headers=headers, ping=0)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._chunks.aclose()


class ClientWatch:
    """Notices at once when the client leaves before its answer is complete, and then calls `on_leave`, once.

    `finish()` must come before the last byte is sent: a server reports a complete answer as a disconnect too.
    """

    def __init__(self, receive: Receive, on_leave: Callable[[], Awaitable[object]] | None = None) -> None:
        self.has_left = False
        self._on_leave = on_leave
        self._is_finished = False
        self._dealt_with = asyncio.Event()
        self._task = asyncio.create_task(self._watch(receive), name="client-watch")

    async def finish(self) -> None:
        """The answer is complete: stop watching. If the client left before, wait until that is dealt with."""
        self._is_finished = True
        if self.has_left:
            await self._dealt_with.wait()
        self._task.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._is_finished:
            return
        self.has_left = True
        try:
            if self._on_leave is not None:
                await self._on_leave()
        except KeepwarmError as error:
            _log.warning("cancel_after_disconnect_failed", code=error.code, error=str(error))
        finally:
            self._dealt_with.set()
