"""End this process when the supervisor that started it is gone, however it went.

The supervisor holds the other end of our standard input. When it dies, even by SIGKILL, the kernel closes that
end and we read end-of-file. Processes started in any other way (a terminal, systemd, a container) carry no marker
in their environment and are left alone.

    python -m tasks.lifeline MODULE ARGUMENTS…     run a module that knows nothing of this
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

MARKER = "KEEPWARM_LIFELINE"  # set by the supervisor; removed here, so that grandchildren don't see it
STDIN = 0
KILL_AFTER_S = 15.0  # longer than any drain


def exit_when_parent_dies() -> None:
    """Watch standard input from a thread: SIGTERM to ourselves at its end, SIGKILL if that did not help."""
    if os.environ.pop(MARKER, None) is not None:
        threading.Thread(target=_watch, name="lifeline", daemon=True).start()


def _watch() -> None:
    while os.read(STDIN, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(KILL_AFTER_S)
    if os.getpgrp() == os.getpid():  # a session of our own: take our children along
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    exit_when_parent_dies()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
