"""`keepwarm up` as a user runs it: real processes, the demo model, signals. Runs alone too."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.cli.premises import free_port

ROOT = Path(__file__).resolve().parents[2]
DEMO = "keepwarm-demo-q8_0"
KEEPWARM = [sys.executable, "-m", "app.cli.main"]
START_BOUND_S = 60.0
STOP_BOUND_S = 30.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (ROOT / "models" / f"{DEMO}.gguf").exists(), reason="the demo model is not here"),
]


def await_that(condition: Callable[[], object], what: str, bound_s: float) -> None:
    deadline = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {bound_s} s for {what}"
        time.sleep(0.1)


def _as_from_a_terminal() -> None:
    """Whoever runs the tests in the background has these ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Up:
    """A running `keepwarm up` with its output in a file, or on a `terminal`, whose descriptor it takes over."""

    def __init__(self, home: Path, *flags: str, terminal: int | None = None) -> None:
        self.home = home
        self.port = free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("KEEPWARM_")}
        self.env |= {"PYTHONPATH": str(ROOT), "KEEPWARM_MODELS_DIR": str(ROOT / "models"), "KEEPWARM_LEASES": "5"}
        home.mkdir(exist_ok=True)
        self.output_path = home / "up.out"
        with self.output_path.open("wb") if terminal is None else os.fdopen(terminal, "wb") as output:
            self.process = subprocess.Popen(
                [*KEEPWARM, "up", f"--home={home}", f"--port={self.port}", "--memory-budget=1GiB", *flags],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_as_from_a_terminal,
            )

    @property
    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def await_output(self, text: str, bound_s: float = START_BOUND_S) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, self.output
            return text in self.output

        await_that(is_there, f"{text!r} in:\n{self.output}", bound_s)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, name: str) -> psutil.Process:
        """The direct child of that name, found by the log that it writes to."""
        for process in psutil.Process(self.process.pid).children():
            with open(f"/proc/{process.pid}/fd/1", "rb") as log:
                if os.path.samestat(os.fstat(log.fileno()), (self.home / "logs" / f"{name}.log").stat()):
                    return process
        raise AssertionError(f"{name} is not running")

    def runs(self, name: str) -> bool:
        try:
            return self.child(name).is_running()
        except (AssertionError, OSError, psutil.Error):  # OSError: a child that ends at this moment
            return False

    def keepwarm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*KEEPWARM, *arguments],
            env={**self.env, "KEEPWARM_URL": self.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def end(self) -> None:
        if self.process.poll() is None:
            family = self.family()
            self.process.kill()
            self.process.wait()
            for process in family:
                if process.is_running():
                    process.kill()


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One for the tests that leave it running."""
    up = Up(tmp_path_factory.mktemp("up"), f"--flower-port={free_port('127.0.0.1')}")
    try:
        up.await_output("Ctrl-C stops everything.")
        yield up
    finally:
        up.end()


def test_up_says_where_everything_is_and_shows_a_first_answer(up: Up):
    for line in (up.url, f"{up.url}/docs", str(up.home / "logs"), "Flower", "curl -N"):
        assert line in up.output
    answer = up.output.split("says:", 1)[1].split("Ctrl-C", 1)[0]
    assert len(answer.split()) > 3, up.output


def test_a_misspelt_variable_is_named_once_by_all_that_was_started(up: Up):
    assert "KEEPWARM_LEASES is no setting and changes nothing. Did you mean KEEPWARM_LEASE_S?" in " ".join(
        up.output.split()
    )
    line = "unknown_setting nearest=KEEPWARM_LEASE_S variable=KEEPWARM_LEASES"
    for name in ("store", "worker", "controller", "api", "batcher"):
        assert (up.home / "logs" / f"{name}.log").read_text().count(line) == 1, name


def test_the_curl_line_streams(up: Up):
    line = next(line for line in up.output.splitlines() if line.strip().startswith("curl -N"))
    streamed = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert streamed.stdout.startswith("data: {")
    assert streamed.stdout.rstrip().endswith("data: [DONE]")


def test_run_ps_ls_and_jobs_tell_the_same_story(up: Up):
    run = up.keepwarm("run", DEMO, "Hello!", "--temperature", "0", "--json")
    assert run.returncode == 0, run.stderr
    job = json.loads(run.stdout)
    assert job["state"] == "succeeded"
    assert job["result"]["text"]
    pool = json.loads(up.keepwarm("ps", "--json").stdout)
    assert DEMO in [runner["model"] for worker in pool["workers"] for runner in worker["runners"]]
    assert re.search(rf"{DEMO}\s+warm", up.keepwarm("ls").stdout)
    assert job["id"] in up.keepwarm("jobs").stdout
    assert job["result"]["text"].split()[0] in up.keepwarm("jobs", "show", job["id"]).stdout


def test_an_unknown_model_is_refused_with_the_nearest_name(up: Up):
    refused = up.keepwarm("run", "keepwarm-dmo", "Hello!")
    assert refused.returncode == 1
    assert DEMO in refused.stderr


def test_a_second_up_on_the_same_home_is_refused_with_the_pid(up: Up):
    second = up.keepwarm("up", f"--home={up.home}", f"--port={free_port('127.0.0.1')}", "--flower-port=0")
    assert second.returncode == 1
    assert f"pid {up.process.pid}" in second.stderr


def test_a_taken_port_is_named_with_its_flag(up: Up):
    refused = up.keepwarm("up", f"--home={up.home.parent / 'other'}", f"--port={up.port}", "--flower-port=0")
    assert refused.returncode == 2
    assert f"port {up.port}" in refused.stderr
    assert "--port" in refused.stderr


@pytest.mark.parametrize(
    ("flag", "variable"),
    [
        ("--port=70000", "KEEPWARM_PORT"),
        ("--models-dir=/no/such/folder", "KEEPWARM_MODELS_DIR"),  # which the worker is asked about
    ],
)
def test_a_wrong_setting_stops_the_start_with_its_name(up: Up, flag: str, variable: str):
    flags = [f"--home={up.home.parent / 'wrong'}", f"--port={free_port('127.0.0.1')}", "--flower-port=0", flag]
    refused = up.keepwarm("up", *flags)
    assert refused.returncode == 2
    assert re.search(rf"^{variable}\b", refused.stderr, re.MULTILINE)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds children through /proc")
@pytest.mark.parametrize("name", ["api", "store", "worker"])
def test_a_killed_process_is_started_again(up: Up, name: str):
    up.child(name).kill()
    up.await_output(f"{name} was ended by SIGKILL; it starts again in ")
    up.await_output(f"{name} runs again")
    answer = up.keepwarm("run", DEMO, "Hello!", "--temperature", "0")
    deadline = time.monotonic() + START_BOUND_S
    while answer.returncode != 0:
        assert time.monotonic() < deadline, answer.stderr
        answer = up.keepwarm("run", DEMO, "Hello!", "--temperature", "0")
    assert answer.stdout.strip()


def test_ctrl_c_ends_everything_in_order_and_leaves_nothing(tmp_path: Path):
    up = Up(tmp_path / "home", "--flower-port=0")
    try:
        up.await_output("Ctrl-C stops everything.")
        family = up.family()
        assert len(family) >= 6  # store, worker, controller, api, batcher, runner
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(STOP_BOUND_S) == 0
        await_that(lambda: all_gone(family), "the end of all children", 5)
        stopped = re.findall(r"^  (\w+) +(?:stopped|killed)$", up.output, re.MULTILINE)
        assert stopped[0] == "worker"
        assert sorted(stopped[1:3]) == ["api", "batcher"]  # together, in whatever order they end
        assert stopped[3:] == ["controller", "store"]
        assert "killed" not in up.output
    finally:
        up.end()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds children through /proc")
def test_a_closed_terminal_ends_neither_the_watch_nor_the_ordered_stop(tmp_path: Path):
    ours, theirs = pty.openpty()
    up = Up(tmp_path / "home", "--flower-port=0", terminal=theirs)
    try:
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            text = b""
            while b"Ctrl-C stops everything." not in text:
                assert select.select([terminal], [], [], START_BOUND_S)[0], text
                text += terminal.read(4096)
        first = up.child("batcher")
        first.kill()
        await_that(lambda: up.process.poll() is not None or not first.is_running(), "the end of the batcher", 5)
        await_that(lambda: up.process.poll() is not None or up.runs("batcher"), "the next batcher", START_BOUND_S)
        assert up.process.poll() is None
        family = up.family()
        up.process.send_signal(signal.SIGHUP)  # the kernel's word to whom the terminal belonged to
        assert up.process.wait(STOP_BOUND_S) == 0
        await_that(lambda: all_gone(family), "the end of all children", 5)
    finally:
        up.end()


def test_a_killed_supervisor_takes_everything_with_it(tmp_path: Path):
    up = Up(tmp_path / "home", f"--flower-port={free_port('127.0.0.1')}")
    family: list[psutil.Process] = []
    try:
        up.await_output("Ctrl-C stops everything.")
        family = up.family()
        up.process.kill()
        up.process.wait()
        await_that(lambda: all_gone(family), "the end of all children", STOP_BOUND_S)
    finally:
        for process in family:
            if process.is_running():
                process.kill()
