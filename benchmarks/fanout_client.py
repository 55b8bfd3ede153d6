"""`python -m benchmarks.fanout_client PORT`: many clients of event streams in one thread, on bare sockets.

It reads the jobs' ids as a line of JSON, opens a stream for each and says `open`. Then for each line `EVENTS` on its
input it answers, once so many events have come over all streams, with the delays in milliseconds of those since the
line before. Per read it looks for the moments in the texts and for nothing else.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time

LIMIT_S = 120.0  # of silence
_MOMENT = re.compile(rb"@(\d+)@")
_READ_BYTES = 64 * 1024


class Clients:
    def __init__(self, port: int, job_ids: list[str]) -> None:
        self._selector = selectors.DefaultSelector()
        self._tails: dict[socket.socket, bytes] = {}
        self._delays_ms: list[float] = []
        for job_id in job_ids:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            self._tails[connection] = b""
            self._selector.register(connection, selectors.EVENT_READ)
        self._await_heads(len(job_ids))

    def _await_heads(self, count: int) -> None:
        """Until every stream is open: a head has come, and the server has subscribed a moment later."""
        waiting = set(self._tails)
        while waiting:
            for key, _ in self._ready():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                head = connection.recv(_READ_BYTES)
                if not head.startswith(b"HTTP/1.1 200") and connection in waiting:
                    raise AssertionError(f"the server refused: {head[:200]!r}")
                waiting.discard(connection)

    def take(self, num_events: int) -> list[float]:
        while len(self._delays_ms) < num_events:
            for key, _ in self._ready():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = connection.recv(_READ_BYTES)
                now = time.monotonic_ns()
                if not data:
                    raise AssertionError("the server ended a stream")
                text = self._tails[connection] + data
                end = 0
                for found in _MOMENT.finditer(text):
                    self._delays_ms.append((now - int(found[1])) / 1e6)
                    end = found.end()
                self._tails[connection] = text[max(end, len(text) - 64) :]
        delays, self._delays_ms = self._delays_ms, []
        return delays

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._selector.select(LIMIT_S)
        if not ready:
            raise TimeoutError(f"nothing came within {LIMIT_S:.0f} s")
        return ready


if __name__ == "__main__":
    clients = Clients(int(sys.argv[1]), json.loads(sys.stdin.readline()))
    print("open", flush=True)
    for line in sys.stdin:
        began = time.process_time()
        delays = clients.take(int(line))
        print(json.dumps({"delays_ms": delays, "cpu_s": time.process_time() - began}), flush=True)
