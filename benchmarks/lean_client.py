"""Streaming clients that cost next to nothing: kept-alive sockets in one thread, no HTTP library, no JSON per chunk.

What a client does per chunk competes with the measured processes for the machine, so it only looks for the first
text and for the end.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time

from benchmarks.load import Load

LIMIT_S = 600.0  # of one run; keep-alives come also to a client whose answer never does
_TEXT = b'"delta":{"content":'
_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_READ_BYTES = 256 * 1024
_TAIL_BYTES = 2048  # the last chunk before the end carries the usage


class _Client:
    """One connection, which sends its requests one after another."""

    def __init__(self, port: int, requests: list[bytes], num_tokens: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.first_token_s: list[float] = []
        self._requests = list(reversed(requests))
        self._num_tokens = num_tokens
        self._sent_at = 0.0
        self._has_text = False
        self._tail = b""

    def send_next(self) -> bool:
        if not self._requests:
            return False
        self._has_text, self._tail = False, b""
        request = self._requests.pop()
        self._sent_at = time.perf_counter()
        self.socket.sendall(request)
        return True

    def receive(self) -> bool:
        """Take what has arrived; False once all requests are answered."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError(f"the server closed the connection after: {self._tail!r}")
        if not self._has_text and _TEXT in data:
            self._has_text = True
            self.first_token_s.append(time.perf_counter() - self._sent_at)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if not self._tail.endswith(_END):
            if self._tail.startswith(b"HTTP/1.1 ") and not self._tail.startswith(b"HTTP/1.1 200"):
                raise AssertionError(f"the server refused: {self._tail!r}")
            return True
        counted = _COMPLETION_TOKENS.search(self._tail)
        if counted is None or int(counted[1]) != self._num_tokens:
            raise AssertionError(f"an answer is not of {self._num_tokens} tokens: {self._tail!r}")
        return self.send_next()


def run_clients(port: int, model: str, load: Load) -> tuple[float, tuple[tuple[float, ...], ...]]:
    """(wall seconds, seconds to the first token per client and request)"""
    clients = [
        _Client(port, [_request(port, model, prompt, load.num_tokens) for prompt in prompts], load.num_tokens)
        for prompts in load.prompts
    ]
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        began = time.perf_counter()
        for client in clients:
            client.send_next()
        open_clients = len(clients)
        while open_clients:
            if time.perf_counter() - began > LIMIT_S:
                raise TimeoutError(f"{open_clients} clients got no answer within {LIMIT_S:.0f} s")
            for key, _ in selector.select(1):
                if not key.data.receive():
                    open_clients -= 1
                    selector.unregister(key.fileobj)
        wall_s = time.perf_counter() - began
    for client in clients:
        client.socket.close()
    return wall_s, tuple(tuple(client.first_token_s) for client in clients)


def _request(port: int, model: str, prompt: str, num_tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
