"""A front as users meet it: real uvicorn on a free port, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

from fastapi import FastAPI

from app.serve import server_of

STOP_LIMIT_S = 10


class FrontServer:
    """The socket listens before the server runs, so a client that is early just waits."""

    def __init__(self, app: FastAPI, *, grace_s: int = 1) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._server = server_of(app, grace_s=grace_s)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> FrontServer:
        self._thread.start()
        return self

    def begin_to_stop(self) -> None:
        self._server.should_exit = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.begin_to_stop()
        self._thread.join(STOP_LIMIT_S)
        self._socket.close()
