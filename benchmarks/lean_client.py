"""Streaming clients that cost next to nothing: kept-alive sockets in one thread, no HTTP library, no JSON per chunk.

What a client does per chunk competes with the measured processes for the machine, so it only looks for text, for the
time, and for the end.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Callable
from itertools import pairwise

import msgspec

from benchmarks.load import Load

LIMIT_S = 600.0  # of one run; keep-alives come also to a client whose answer never does
TOKENS_BEFORE_LATER = 10  # arrivals on every running stream before the later load is sent
_TEXT = b'"delta":{"content":'
_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens":(\d+)')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_READ_BYTES = 256 * 1024
_TAIL_BYTES = 2048  # the last chunk before the end carries the usage


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients of one load saw. Seconds."""

    wall_s: float
    first_token_s: tuple[tuple[float, ...], ...]  # per client and request
    prompt_tokens: int  # of all requests
    completion_tokens: int


class _Client:
    """Sends its requests one after another, over one connection or, where servers end theirs, one for each."""

    def __init__(self, port: int, requests: list[bytes], load: Load, keeps_alive: bool) -> None:
        self.socket = _connected(port)
        self._port = port
        self._keeps_alive = keeps_alive
        self.sent_at: list[float] = []
        self.text_at: list[float] = []  # every arrival with text in it
        self.first_token_s: list[float] = []
        self.prompt_tokens = self.completion_tokens = 0
        self._requests = list(reversed(requests))
        self._load = load
        self._has_text = False
        self._tail = b""

    def send_next(self) -> bool:
        if not self._requests:
            return False
        self._has_text, self._tail = False, b""
        request = self._requests.pop()
        if self.sent_at and not self._keeps_alive:
            self.socket.close()
            self.socket = _connected(self._port)
        self.sent_at.append(time.perf_counter())
        self.socket.sendall(request)
        return True

    def receive(self) -> bool:
        """Take what has arrived; False once all requests are answered."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError(f"the server closed the connection after: {self._tail!r}")
        if _TEXT in data:
            self.text_at.append(time.perf_counter())
            if not self._has_text:
                self._has_text = True
                self.first_token_s.append(self.text_at[-1] - self.sent_at[-1])
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if not self._tail.endswith(_END):
            if self._tail.startswith(b"HTTP/1.1 ") and not self._tail.startswith(b"HTTP/1.1 200"):
                raise AssertionError(f"the server refused: {self._tail!r}")
            return True
        prompt, completion = _PROMPT_TOKENS.search(self._tail), _COMPLETION_TOKENS.search(self._tail)
        if prompt is None or completion is None or not self._is_complete(int(completion[1])):
            raise AssertionError(f"an answer is not of {self._load.num_tokens} tokens: {self._tail!r}")
        self.prompt_tokens += int(prompt[1])
        self.completion_tokens += int(completion[1])
        return self.send_next()

    def _is_complete(self, num_tokens: int) -> bool:
        return num_tokens == self._load.num_tokens or (self._load.schema is not None and num_tokens > 0)


def run_clients(port: int, model: str, load: Load, *, keeps_alive: bool = True) -> Answers:
    clients = _clients(port, model, load, keeps_alive)
    began = time.perf_counter()
    _serve(clients, lambda: [])
    wall_s = time.perf_counter() - began
    return Answers(
        wall_s=wall_s,
        first_token_s=tuple(tuple(client.first_token_s) for client in clients),
        prompt_tokens=sum(client.prompt_tokens for client in clients),
        completion_tokens=sum(client.completion_tokens for client in clients),
    )


def run_beside(port: int, model: str, running: Load, later: Load) -> tuple[list[float], Answers]:
    """Send `later` while `running` streams: (seconds between two arrivals on the running streams, all those that touch
    the time from the sending of the later load to its first token; what the later load's clients saw)."""
    clients, late = _clients(port, model, running), _clients(port, model, later)
    waiting = list(late)

    def join() -> list[_Client]:
        if not waiting or any(len(client.text_at) < TOKENS_BEFORE_LATER for client in clients):
            return []
        joining, waiting[:] = list(waiting), []
        return joining

    _serve(clients, join)
    if waiting:
        raise AssertionError("the running streams ended before the later load was sent")
    sent_at = min(client.sent_at[0] for client in late)
    answered_at = max(client.sent_at[0] + client.first_token_s[0] for client in late)
    gaps = [
        after - before
        for client in clients
        for before, after in pairwise(client.text_at)
        if after > sent_at and before < answered_at
    ]
    answers = Answers(
        wall_s=answered_at - sent_at,
        first_token_s=tuple(tuple(client.first_token_s) for client in late),
        prompt_tokens=sum(client.prompt_tokens for client in late),
        completion_tokens=sum(client.completion_tokens for client in late),
    )
    return gaps, answers


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _clients(port: int, model: str, load: Load, keeps_alive: bool = True) -> list[_Client]:
    return [
        _Client(port, [_request(port, model, prompt, load) for prompt in prompts], load, keeps_alive)
        for prompts in load.prompts
    ]


def _serve(clients: list[_Client], join: Callable[[], list[_Client]]) -> None:
    """Until all are answered; `join` is asked after every arrival for clients who start now."""
    began = time.perf_counter()
    starting, open_clients = list(clients), 0
    with selectors.DefaultSelector() as selector:
        while starting or open_clients:
            for client in starting:
                selector.register(client.socket, selectors.EVENT_READ, client)
            for client in starting:
                client.send_next()
            open_clients += len(starting)
            if time.perf_counter() - began > LIMIT_S:
                raise TimeoutError(f"{open_clients} clients got no answer within {LIMIT_S:.0f} s")
            for key, _ in selector.select(1):
                client, connection = key.data, key.fileobj
                goes_on = client.receive()
                if not goes_on or client.socket is not connection:
                    selector.unregister(connection)
                if not goes_on:
                    open_clients -= 1
                    client.socket.close()
                elif client.socket is not connection:
                    selector.register(client.socket, selectors.EVENT_READ, client)
            starting = join()


def _request(port: int, model: str, prompt: str, load: Load) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    fields: dict[str, object] = {"ignore_eos": True}
    if load.system is not None:
        messages.insert(0, {"role": "system", "content": load.system})
    if load.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": load.schema}
        fields = {"response_format": {"type": "json_schema", "json_schema": schema}}
    body = json.dumps(
        {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": load.num_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
