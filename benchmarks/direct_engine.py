"""The engine alone: a process that holds one model and answers loads in a plain loop, with nothing around it."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from types import TracebackType

from benchmarks.load import Load, Outcome
from tasks.generation import ChatMessage, GenerationRequest, SamplingParams
from workers.engine.base import Engine, EngineConfig
from workers.messages import Done, Generate, TokenOut

START_LIMIT_S = 120


class DirectEngine:
    """Handle of the process. Use as a context manager."""

    def __init__(self, config: EngineConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(config, child_end), daemon=True)
        self._process.start()
        child_end.close()

    def __enter__(self) -> DirectEngine:
        if not self._connection.poll(START_LIMIT_S):
            raise TimeoutError("the engine does not start")
        self._connection.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(10)
        self._process.kill()

    def run(self, load: Load) -> Outcome:
        self._connection.send(load)
        outcome: Outcome = self._connection.recv()
        return outcome


def _serve(config: EngineConfig, connection: Connection) -> None:
    from workers.engine.llama_cpp import LlamaEngine

    engine = LlamaEngine(config)
    connection.send(engine.load(lambda _: None))
    try:
        while True:
            connection.send(run_load(engine, connection.recv()))
    except EOFError:
        engine.close()


def run_load(engine: Engine, load: Load) -> Outcome:
    """Every client's next prompt is prepared as soon as its answer before is complete, between two steps."""
    began, cpu_began = time.perf_counter(), time.process_time()
    left = [list(reversed(prompts)) for prompts in load.prompts]
    sent_at: dict[int, float] = {}  # client → when its newest prompt was handed in; the key of its sequence
    first_token_s: list[list[float]] = [[] for _ in left]
    prompt_tokens = 0

    def send_next(client: int) -> None:
        if left[client]:
            sent_at[client] = time.perf_counter()
            engine.add(engine.prepare(_generate(client, left[client].pop(), load.num_tokens)))

    for client in range(len(left)):
        send_next(client)
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            client = output.key
            if isinstance(output, TokenOut) and client in sent_at:
                first_token_s[client].append(now - sent_at.pop(client))
            elif isinstance(output, Done):
                _check(output, load.num_tokens)
                prompt_tokens += output.prompt_tokens
                send_next(client)
    return Outcome(
        wall_s=time.perf_counter() - began,
        first_token_s=tuple(map(tuple, first_token_s)),
        cpu_s={"engine": time.process_time() - cpu_began},
        prompt_tokens=prompt_tokens,
        completion_tokens=load.total_tokens,
    )


def _generate(client: int, prompt: str, num_tokens: int) -> Generate:
    request = GenerationRequest(
        model="",
        messages=(ChatMessage(role="user", content=prompt),),
        sampling=SamplingParams(temperature=0),
        max_tokens=num_tokens,
        ignore_eos=True,
    )
    return Generate(key=client, request=request)


def _check(done: Done, num_tokens: int) -> None:
    if done.completion_tokens != num_tokens:
        raise AssertionError(f"the engine made {done.completion_tokens} of {num_tokens} tokens")
