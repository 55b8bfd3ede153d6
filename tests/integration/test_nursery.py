"""The nursery with real processes: what it forks serves requests, ends as it should, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from tests.support.generating import Heard, request
from tests.support.tiny_model import write_tiny_model
from workers import nursery_requests
from workers.adoption import AdoptedProcess
from workers.devices import CpuDevice, ModelMapping
from workers.engine.base import EngineConfig
from workers.engine.fake_behaviour import FakeBehaviour
from workers.framing import FrameDecoder, FrameReader, FrameWriter
from workers.messages import FromRunner, Generate, Ready, Step
from workers.nursery import Nursery
from workers.runner_launch import ChildProcess, EngineKind, RunnerConfig

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have no nursery"),
]

LIMIT_S = 30

# A worker that has loaded one model, says the pids of its nursery and runner, and waits to be killed.
WORKER = """
import sys
from pathlib import Path
from tests.integration.test_nursery import Loaded, config_for
from workers.nursery import Nursery
nursery = Nursery("fake")
nursery.replenish()
loaded = Loaded(nursery, config_for(Path(sys.argv[1])))
print(nursery.pid, loaded.process.pid, flush=True)
sys.stdin.read()
"""


Inject = Callable[[str], None]


@pytest.fixture
def nursery_later() -> Iterator[Nursery]:
    """Not started yet."""
    nursery = Nursery("fake")
    yield nursery
    nursery.close()


@pytest.fixture
def nursery(nursery_later: Nursery) -> Nursery:
    nursery_later.replenish()
    return nursery_later


def config_for(folder: Path, *, kind: EngineKind = "fake", model: str = "m", path: Path | None = None) -> RunnerConfig:
    return RunnerConfig(
        model=model,
        engine=EngineConfig(model_path=path or folder, context_length=256, slots=1, threads=1),
        log_path=folder / f"{model}.log",
        kind=kind,
        fake=FakeBehaviour(crash_on="boom"),
    )


class Loaded:
    """A runner that has its model, at our end of its socket."""

    def __init__(self, nursery: Nursery, config: RunnerConfig) -> None:
        self.process: ChildProcess
        self.process, self.connection = nursery.start(config)
        self.connection.settimeout(LIMIT_S)
        self.frames: Iterator[FromRunner] = iter(FrameReader(self.connection, FrameDecoder()))
        assert any(isinstance(message, Ready) for message in self.frames), config.log_path.read_text()

    @property
    def is_forked(self) -> bool:
        return isinstance(self.process, AdoptedProcess)

    def ask(self, prompt: str) -> Heard:
        FrameWriter(self.connection).send(Generate(key=1, request=request(prompt, max_tokens=4, ignore_eos=True)))
        heard = Heard()
        for message in self.frames:
            for output in message.outputs if isinstance(message, Step) else ():
                heard.take(output)
            if heard.end:
                break
        return heard

    def end(self) -> int:
        self.connection.close()
        return self.process.wait(LIMIT_S)


def await_end(pid: int) -> None:
    """Of a process that need not be our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], LIMIT_S)[0], f"process {pid} lives on"
    finally:
        os.close(descriptor)


def pss_anon_bytes(pid: int) -> int:
    found = re.search(r"^Pss_Anon: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def test_forked_runner_answers_with_the_real_engine(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    nursery = Nursery("llama_cpp")
    try:
        nursery.replenish()
        runner = Loaded(nursery, config_for(tmp_path, kind="llama_cpp", path=path))
        assert runner.is_forked
        assert runner.ask("the end").done.completion_tokens == 4
        assert "Traceback" not in (tmp_path / "m.log").read_text()
        assert runner.end() == 0
    finally:
        nursery.close()


def test_forked_runner_is_our_child_with_a_session_a_title_and_its_own_descriptors(
    nursery: Nursery, tmp_path: Path
) -> None:
    runner = Loaded(nursery, config_for(tmp_path, model="fable"))
    process = psutil.Process(runner.process.pid)
    assert runner.is_forked
    assert process.ppid() == os.getpid()
    assert os.getsid(process.pid) == process.pid
    assert process.cmdline()[0].startswith("keepwarm runner: fable")
    assert psutil.Process(nursery.pid).cmdline()[0].startswith("keepwarm nursery")
    open_files = {name: os.readlink(f"/proc/{process.pid}/fd/{name}") for name in os.listdir(f"/proc/{process.pid}/fd")}
    assert open_files.pop("0") == "/dev/null"
    assert open_files.pop("1") == open_files.pop("2") == str(tmp_path / "fable.log")
    assert [target.partition(":")[0] for target in open_files.values()] == ["socket"]
    assert runner.end() == 0


def test_bytes_of_a_forked_runner_and_its_nursery_add_up_to_what_they_take_together(
    nursery: Nursery, tmp_path: Path
) -> None:
    device, nothing = CpuDevice(), ModelMapping(paths=(), weight_bytes=0)
    assert nursery.pid is not None
    assert Loaded(nursery, config_for(tmp_path)).end() == 0
    alone = device.runner_bytes(nursery.pid, nothing)
    runner = Loaded(nursery, config_for(tmp_path))
    taken = device.runner_bytes(runner.process.pid, nothing)
    together = pss_anon_bytes(nursery.pid) + pss_anon_bytes(runner.process.pid)
    assert alone and taken
    assert alone + taken == pytest.approx(together, rel=0.05)
    assert runner.end() == 0


def test_worker_sees_by_which_signal_a_forked_runner_died(nursery: Nursery, tmp_path: Path) -> None:
    killed, crashed = (Loaded(nursery, config_for(tmp_path, model=name)) for name in ("killed", "crashed"))
    os.kill(killed.process.pid, signal.SIGSEGV)
    assert killed.process.wait(LIMIT_S) == -signal.SIGSEGV
    killed.connection.close()
    assert not crashed.ask("boom").end
    assert crashed.end() == -signal.SIGKILL


def test_kill_ends_a_forked_runner_and_can_be_repeated(nursery: Nursery, tmp_path: Path) -> None:
    runner = Loaded(nursery, config_for(tmp_path))
    with pytest.raises(subprocess.TimeoutExpired):
        runner.process.wait(0)
    assert runner.process.poll() is None
    runner.process.kill()
    assert runner.process.wait(LIMIT_S) == -signal.SIGKILL
    runner.process.kill()
    assert not psutil.pid_exists(runner.process.pid)
    runner.connection.close()


def test_load_after_the_nursery_was_killed_starts_its_own_process_and_the_next_one_is_forked(
    nursery: Nursery, tmp_path: Path
) -> None:
    before = Loaded(nursery, config_for(tmp_path, model="before"))
    first = nursery.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    during = Loaded(nursery, config_for(tmp_path, model="during"))
    nursery.replenish()
    after = Loaded(nursery, config_for(tmp_path, model="after"))
    assert [runner.is_forked for runner in (before, during, after)] == [True, False, True]
    assert nursery.pid != first
    assert before.ask("still there?").done.completion_tokens == 4
    assert [runner.end() for runner in (before, during, after)] == [0, 0, 0]
    assert not psutil.pid_exists(first)


def test_loads_at_once_get_runners_of_their_own(nursery: Nursery, tmp_path: Path) -> None:
    loaded: list[Loaded] = []
    threads = [
        threading.Thread(target=lambda name=name: loaded.append(Loaded(nursery, config_for(tmp_path, model=name))))
        for name in ("a", "b", "c")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len({runner.process.pid for runner in loaded}) == 3
    assert all(runner.is_forked for runner in loaded)
    assert [runner.end() for runner in loaded] == [0, 0, 0]


def test_fifty_forks_leave_no_descriptor_and_no_process(nursery: Nursery, tmp_path: Path) -> None:
    assert Loaded(nursery, config_for(tmp_path)).end() == 0
    processes = [psutil.Process(), psutil.Process(nursery.pid)]
    before = [process.num_fds() for process in processes]
    children = psutil.Process().children(recursive=True)
    for _ in range(50):
        child, connection = nursery.start(config_for(tmp_path))
        connection.close()
        assert child.wait(LIMIT_S) == 0
    assert [process.num_fds() for process in processes] == before
    assert psutil.Process().children(recursive=True) == children


def test_killed_worker_leaves_neither_nursery_nor_runner(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None and worker.stdout is not None
    with worker.stdin, worker.stdout:
        pids = [int(word) for word in worker.stdout.readline().split()]
        assert len(pids) == 2
        worker.kill()
        worker.wait(LIMIT_S)
        for pid in pids:
            await_end(pid)


def test_closed_nursery_is_gone_and_its_runners_go_on(tmp_path: Path) -> None:
    nursery = Nursery("fake")
    nursery.replenish()
    pid = nursery.pid
    runner = Loaded(nursery, config_for(tmp_path))
    nursery.close()
    nursery.replenish()
    assert nursery.pid is None
    assert pid is not None and not psutil.pid_exists(pid)
    assert runner.ask("still there?").done.completion_tokens == 4
    assert runner.end() == 0


@pytest.fixture
def inject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inject:
    """Have this code run first in every nursery that is started from here on. `NURSERY` is its pid."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))

    def write(fault: str) -> None:
        lines = ("import os, sys", "NURSERY = os.getpid()", "if 'workers.nursery_process' in sys.orig_argv:")
        (folder / "sitecustomize.py").write_text("\n".join(lines) + textwrap.indent(fault, "    "))

    return write


# No further process for this user while a file is there: in the nursery, or in the process in between.
FORK_FAILS = """
import resource
from pathlib import Path
fork = os.fork
def fork_at_the_limit():
    if not Path({flag!r}).exists() or (os.getpid() == NURSERY) != {in_nursery}:
        return fork()
    limits = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, limits[1]))
    is_root = os.getuid() == 0
    if is_root:  # the limit is for others
        os.setresuid(65534, 65534, 0)
    try:
        return fork()
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        resource.setrlimit(resource.RLIMIT_NPROC, limits)
os.fork = fork_at_the_limit
"""

HAS_THREAD = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""

DIES = """
os.{at} = lambda *arguments: os._exit(9)
"""


@pytest.mark.parametrize("in_nursery", [True, False])
def test_load_starts_its_own_process_while_the_nursery_cannot_fork(
    inject: Inject, nursery_later: Nursery, tmp_path: Path, in_nursery: bool
) -> None:
    nursery, flag = nursery_later, tmp_path / "flag"
    inject(FORK_FAILS.format(flag=str(flag), in_nursery=in_nursery))
    nursery.replenish()
    flag.touch()
    with capture_logs() as logs:
        during = Loaded(nursery, config_for(tmp_path, model="during"))
    flag.unlink()
    after = Loaded(nursery, config_for(tmp_path, model="after"))
    assert [runner.is_forked for runner in (during, after)] == [False, True]
    assert [(line["event"], line["pid"], line["reason"]) for line in logs] == [
        ("nursery_cannot_fork", nursery.pid, os.strerror(errno.EAGAIN))
    ]
    assert [runner.end() for runner in (during, after)] == [0, 0]


def test_nursery_with_threads_serves_nobody_and_is_not_started_again(
    inject: Inject, nursery_later: Nursery, tmp_path: Path
) -> None:
    nursery = nursery_later
    inject(HAS_THREAD)
    nursery.replenish()
    with capture_logs() as logs:
        runner = Loaded(nursery, config_for(tmp_path))
        nursery.replenish()
    assert (runner.is_forked, nursery.pid) == (False, None)
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("no_nursery", "importing the engine starts threads here")
    ]
    assert runner.end() == 0


@pytest.mark.parametrize("at", ["pipe", "waitpid"])  # before it has forked a runner, and behind that
def test_load_whose_nursery_dies_under_it_starts_its_own_process_and_leaves_no_other(
    inject: Inject, nursery_later: Nursery, tmp_path: Path, at: str
) -> None:
    nursery = nursery_later
    inject(DIES.format(at=at))
    nursery.replenish()
    first = nursery.pid
    assert first is not None
    with capture_logs() as logs:
        runner = Loaded(nursery, config_for(tmp_path))
    assert not runner.is_forked
    assert [(line["event"], line["exit_code"]) for line in logs] == [("nursery_lost", 9)]
    with contextlib.suppress(ChildProcessError):  # the runner that nobody asked for any more, until it has ended
        os.waitid(os.P_PGID, first, os.WEXITED | os.WNOWAIT)
    nursery.replenish()
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PGID, first, os.WEXITED | os.WNOWAIT)
    assert runner.end() == 0


def test_load_gives_up_a_nursery_that_does_not_answer(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.nursery.ANSWER_S", 0.1)
    first = nursery.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with capture_logs() as logs:
        during = Loaded(nursery, config_for(tmp_path, model="during"))
    assert not psutil.pid_exists(first)
    monkeypatch.undo()
    nursery.replenish()
    after = Loaded(nursery, config_for(tmp_path, model="after"))
    assert [runner.is_forked for runner in (during, after)] == [False, True]
    assert [(line["event"], line["reason"]) for line in logs] == [("nursery_lost", "it has not answered for 0.1 s")]
    assert [runner.end() for runner in (during, after)] == [0, 0]


def test_nursery_that_died_between_loads_is_told_of_and_replaced(nursery: Nursery) -> None:
    first = nursery.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    with capture_logs() as logs:
        nursery.replenish()
    assert nursery.pid not in (None, first)
    assert [(line["event"], line["exit_code"]) for line in logs] == [("nursery_lost", -signal.SIGKILL)]


def test_answer_tells_a_pid_or_an_error() -> None:
    for answer in (4242, -errno.ENOMEM):
        assert nursery_requests.decode_answer(nursery_requests.encode_answer(answer)) == answer
    assert nursery_requests.decode_answer(nursery_requests.encode_answer(OSError(errno.ENOMEM, ""))) == -errno.ENOMEM
    with pytest.raises(EOFError):
        nursery_requests.decode_answer(b"")


def test_dead_worker_is_an_end_of_requests() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(EOFError):
        nursery_requests.receive_request(theirs)
