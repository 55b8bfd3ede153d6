"""Start the processes of `keepwarm up`: where their output goes, how they notice our end, and how they are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from app.cli.processes import CHILD_ENV, ProcessSpec
from app.cli.supervisor import RunningProcess
from tasks.lifeline import MARKER
from tasks.log_files import older_generation

KILL_BOUND_S = 5.0  # longer only in uninterruptible I/O


class LogFolderLauncher:
    """Launches with one log file per process, a session of its own, and the lifeline on standard input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rotated: set[str] = set()

    def log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def launch(self, spec: ProcessSpec) -> RunningProcess:
        self.folder.mkdir(exist_ok=True)
        path = self.log_path(spec.name)
        if spec.name not in self._rotated and path.exists():
            path.replace(older_generation(path))
        self._rotated.add(spec.name)
        with path.open("ab") as log:  # appending, so that it can be emptied under the process
            process = subprocess.Popen(
                spec.argv,
                env={**os.environ, **CHILD_ENV, **spec.env, MARKER: "stdin"},
                stdin=subprocess.PIPE,  # never written to; its end tells the child that we are gone
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only us, and one signal reaches all that it starts
            )
        return _SessionLeader(process)

    def log_tail(self, name: str, lines: int) -> list[str]:
        """The last lines that the process wrote."""
        try:
            content = self.log_path(name).read_bytes()[-64 * 1024 :]
        except OSError:
            return []
        return content.decode(errors="replace").splitlines()[-lines:]


class _SessionLeader:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM when only a zombie is left
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_BOUND_S)
        if self._process.stdin is not None:
            self._process.stdin.close()
