"""A real runner process, driven over its socket: load, generate, cancel, refuse, and every way to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tasks.generation import ChatMessage, GenerationRequest, SamplingParams
from tests.support.generating import Heard, request
from tests.support.tiny_model import write_tiny_model
from workers.engine.base import EngineConfig
from workers.engine.fake_behaviour import FakeBehaviour
from workers.framing import FrameDecoder, FrameReader, FrameWriter
from workers.messages import (
    Cancel,
    Done,
    Fatal,
    FromRunner,
    Generate,
    LoadFailed,
    LoadProgress,
    Ready,
    Rejected,
    Shutdown,
    Step,
    TokenOut,
    ToRunner,
)
from workers.runner_launch import EngineKind, RunnerConfig, send_config, spawn

pytestmark = pytest.mark.integration

LIMIT_S = 30
ENDLESS = {"max_tokens": None, "ignore_eos": True}


M = TypeVar("M", bound=FromRunner)


class RunnerUnderTest:
    """Our end of one runner process."""

    def __init__(self, config: RunnerConfig) -> None:
        self.log_path = config.log_path
        self.process, self.connection = spawn(config.kind)
        send_config(self.connection, config)
        self.connection.settimeout(LIMIT_S)
        self.frames: Iterator[FromRunner] = iter(FrameReader(self.connection, FrameDecoder()))
        self._writer = FrameWriter(self.connection)

    def send(self, *messages: ToRunner) -> None:
        for message in messages:
            self._writer.send(message)

    def receive(self, kind: type[M], matches: Callable[[M], bool] = lambda message: True) -> M:
        """The next message of that kind; others are skipped, but a failure is not."""
        for message in self.frames:
            if isinstance(message, kind) and matches(message):
                return message
            assert not isinstance(message, LoadFailed | Fatal), message
        raise AssertionError(f"no {kind.__name__}; log:\n{self.log_path.read_text()}")

    def listen_until_done(self, *keys: int) -> dict[int, Heard]:
        heard: dict[int, Heard] = {}
        for message in self.frames:
            assert not isinstance(message, Fatal), message
            if not isinstance(message, Step):
                continue
            for output in message.outputs:
                heard.setdefault(output.key, Heard()).take(output)
            if all(key in heard and heard[key].end for key in keys):
                return heard
        raise AssertionError("the runner ended before the generation")

    def exit_code(self) -> int:
        return self.process.wait(LIMIT_S)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


Start = Callable[..., RunnerUnderTest]


@pytest.fixture
def start(tmp_path: Path, model_path: Path) -> Iterator[Start]:
    started: list[RunnerUnderTest] = []

    def start_one(
        kind: EngineKind = "llama_cpp", *, path: Path = model_path, slots: int = 2, **behaviour
    ) -> RunnerUnderTest:
        config = RunnerConfig(
            model="tiny",
            kind=kind,
            engine=EngineConfig(model_path=path, context_length=512, slots=slots, threads=1, prefill_chunk=64),
            log_path=tmp_path / f"runner-{len(started)}.log",
            fake=FakeBehaviour(**behaviour),
        )
        runner = RunnerUnderTest(config)
        started.append(runner)
        return runner

    yield start_one
    for runner in started:
        runner.connection.close()
        runner.process.kill()
        runner.process.wait(LIMIT_S)


def test_load_generate_cancel_shutdown(start: Start):
    runner = start()
    assert runner.receive(LoadProgress).fraction >= 0
    assert runner.receive(Ready).slots == 2
    runner.send(Generate(key=1, request=request("the end", max_tokens=8, ignore_eos=True)))
    heard = runner.listen_until_done(1)
    assert heard[1].done == Done(key=1, finish_reason="length", prompt_tokens=6, completion_tokens=8)
    assert heard[1].text

    runner.send(Generate(key=2, request=request("go on", **ENDLESS)))
    runner.receive(Step, lambda step: any(isinstance(output, TokenOut) for output in step.outputs))
    runner.send(Cancel(2))
    assert runner.listen_until_done(2)[2].done.finish_reason is None

    runner.send(Shutdown())
    assert runner.exit_code() == 0
    assert "Traceback" not in runner.log_path.read_text()


def test_chat_messages_and_a_resume_travel_through(start: Start):
    runner = start()
    chat = GenerationRequest(
        model="tiny",
        messages=(ChatMessage(role="user", content="hü"),),
        sampling=SamplingParams(temperature=1.0, seed=5),
        max_tokens=12,
        ignore_eos=True,
    )
    runner.send(Generate(key=1, request=chat))
    whole = runner.listen_until_done(1)[1]
    before = Heard(whole.outputs[:3])
    runner.send(Generate(key=2, request=chat, forced_ids=before.ids, emitted_text=before.text))
    rest = runner.listen_until_done(2)[2]
    assert before.text + rest.text == whole.text
    assert rest.done.completion_tokens == 12


def test_steps_are_counted_upwards_also_in_a_prefill_without_output(start: Start):
    runner = start()
    runner.send(Generate(key=1, request=request("long prompt " * 40, max_tokens=1)))
    steps: list[Step] = []
    while not steps or not steps[-1].outputs:
        steps.append(runner.receive(Step))
    numbers = [step.number for step in steps]  # of fast steps only some have a frame
    assert numbers == sorted(set(numbers)) and numbers[0] == 1
    assert numbers[-1] == -(-481 // 64)


def test_prompt_too_long_is_rejected_and_the_runner_goes_on(start: Start):
    runner = start()
    runner.send(
        Generate(key=1, request=request("x" * 600)),
        Generate(key=2, request=request("y", max_tokens=1, ignore_eos=True)),
    )
    rejected = runner.receive(Rejected)
    assert (rejected.key, rejected.error.code) == (1, "context_length_exceeded")
    assert runner.listen_until_done(2)[2].done.completion_tokens == 1


def test_cancel_sent_right_behind_its_generate_is_answered(start: Start):
    runner = start("fake")
    runner.send(Generate(key=1, request=request("a" * 400, **ENDLESS)), Cancel(1))
    assert runner.listen_until_done(1)[1].done.finish_reason is None


def test_more_sequences_than_slots_all_finish(start: Start):
    runner = start("fake", slots=2)
    runner.send(*(Generate(key=key, request=request(f"number {key}", max_tokens=20)) for key in range(10)))
    heard = runner.listen_until_done(*range(10))
    assert len(heard) == 10


def test_runner_exits_when_the_worker_is_gone_even_while_loading(start: Start):
    runner = start("fake", load_s=3600.0)
    runner.connection.close()
    assert runner.exit_code() == 0


def test_runner_exits_when_the_worker_is_gone_even_while_decoding(start: Start):
    runner = start("fake", stall_on="hang")
    runner.receive(Ready)
    runner.send(Generate(key=1, request=request("go on", **ENDLESS)))
    runner.receive(Step, lambda step: bool(step.outputs))
    runner.send(Generate(key=2, request=request("please hang")))
    runner.connection.close()
    assert runner.exit_code() == 0


def test_shutdown_while_loading_is_obeyed_at_once(start: Start):
    runner = start("fake", load_s=3600.0)
    runner.send(Shutdown())
    assert runner.exit_code() == 0


def test_garbage_from_the_worker_ends_the_runner(start: Start):
    runner = start("fake")
    runner.receive(Ready)
    runner.connection.sendall(b"\xff" * 64)
    assert runner.exit_code() == 0
    assert "lost the worker" in runner.log_path.read_text()


def test_signals_meant_for_the_worker_are_ignored(start: Start):
    runner = start("fake")
    runner.receive(Ready)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(runner.process.pid, number)
    runner.send(Generate(key=1, request=request("still there?", max_tokens=2, ignore_eos=True)))
    assert runner.listen_until_done(1)[1].done.completion_tokens == 2


def test_runner_leads_its_own_session_and_names_itself(start: Start):
    runner = start("fake")
    runner.receive(Ready)
    assert os.getsid(runner.process.pid) == runner.process.pid
    assert psutil.Process(runner.process.pid).cmdline()[0].startswith("keepwarm runner: tiny")


def test_broken_file_is_reported_and_leaves_no_traceback(start: Start, tmp_path: Path, model_path: Path):
    path = tmp_path / "half.gguf"
    path.write_bytes(model_path.read_bytes()[:20_000])
    runner = start(path=path)
    message = runner.receive(LoadFailed)
    assert "half.gguf" in message.reason
    assert runner.exit_code() == 3
    assert "Traceback" not in runner.log_path.read_text()


def test_engine_failure_is_fatal(start: Start):
    runner = start("fake", fail_on="break")
    runner.receive(Ready)
    runner.send(Generate(key=1, request=request("break, please")))
    fatal = runner.receive(Fatal)
    assert "told to fail" in fatal.reason
    assert runner.exit_code() == 4


def test_crash_closes_the_connection(start: Start):
    runner = start("fake", crash_on="boom")
    runner.receive(Ready)
    runner.send(Generate(key=1, request=request("boom")))
    assert not any(isinstance(frame, Fatal) for frame in runner.frames)
    assert runner.exit_code() == -signal.SIGKILL
