"""What a process is called towards all others that use the store: as a worker, a controller, a node of Celery."""

from __future__ import annotations

import os
import secrets
import socket
from functools import cache


@cache
def process_name() -> str:
    """`<host>-<pid>-<random>`, the same for as long as the process lives.

    Host and pid are for people. They are not enough: containers in their host's network share its name, and each of
    them begins at pid 1."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
