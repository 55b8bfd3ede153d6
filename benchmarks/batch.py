"""Batches: tokens per second against the bare engine at the same slots, and what interactive requests notice of one.

1  A batch of `--lines` lines of `--tokens` tokens, against `llama-batched-bench` of the same llama.cpp at as many
   sequences, with prompts of as many tokens. Both alone on the machine, by turns.
2  Interactive requests, one every `--pause` seconds, without a batch and while one runs, by turns: p95 of the time to
   the first token, the second over the first.

    python -m tools.make_random_gguf llama-110m-q8_0 --out ~/models/batch
    python -m benchmarks batch --model ~/models/batch/llama-110m-q8_0.gguf --batched-bench PATH
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import msgspec
from rich.console import Console

from benchmarks import batched_bench, machine
from benchmarks.spread import Estimate, estimate, percentile
from benchmarks.system import engine_config, served_model
from tests.support.stack import Api, Stack, wait_until
from workers.model_files import ModelFile

GOAL_TTFT_RATIO = 1.5
CHAT = "/v1/chat/completions"
LIMIT_S = 3600.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Ratios are medians over the pairs of runs."""

    where: dict[str, object]
    lines: int
    tokens: int
    prompt_tokens: int
    slots: int
    threads: int
    batch_tokens_per_s: list[float]
    engine_tokens_per_s: list[float]  # empty without the peer
    rate_ratio: Estimate | None
    ttft_alone_s: list[list[float]]  # of each turn's requests
    ttft_beside_s: list[list[float]]
    ttft_p50_ratio: Estimate
    ttft_p95_ratio: Estimate


class Numbers:
    """Every prompt is a new one, so that no cache knows more than the common beginning."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{next(self._numbers)}: tell me a story about a fox and a boat."}]


def start_batch(api: Api, model: str, numbers: Numbers, *, lines: int, tokens: int) -> str:
    fields = {"model": model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    requests = [
        {"custom_id": str(number), "method": "POST", "url": CHAT, "body": {**fields, "messages": numbers.messages()}}
        for number in range(lines)
    ]
    content = "\n".join(map(json.dumps, requests)).encode()
    form = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", content)}}
    file = api.http.post("/v1/files", **form).raise_for_status().json()  # type: ignore[arg-type]
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch_id: str = api.http.post("/v1/batches", json=body).raise_for_status().json()["id"]
    return batch_id


def state_of(api: Api, batch_id: str) -> dict:
    return api.http.get(f"/v1/batches/{batch_id}").raise_for_status().json()


def batch_rate(api: Api, model: str, numbers: Numbers, *, lines: int, tokens: int) -> tuple[float, int]:
    """Tokens made per second, from the creation of the batch to its output file; and tokens per prompt."""
    began = time.perf_counter()
    batch_id = start_batch(api, model, numbers, lines=lines, tokens=tokens)
    wait_until(lambda: state_of(api, batch_id)["status"] in {"completed", "failed"}, "the batch has ended", LIMIT_S)
    took_s = time.perf_counter() - began
    batch = state_of(api, batch_id)
    if batch["request_counts"]["completed"] != lines or batch["usage"]["output_tokens"] != lines * tokens:
        raise AssertionError(f"the batch is not complete: {batch}")
    return lines * tokens / took_s, round(batch["usage"]["input_tokens"] / lines)


def engine_rate(model: ModelFile, options: argparse.Namespace, prompt_tokens: int) -> float:
    """Tokens made per second by the bare engine with our settings, prompts included in the time."""
    config = engine_config(model, options.threads)
    times = batched_bench.run(options.batched_bench, config, options.threads, prompt_tokens, options.tokens)
    return float(options.slots * options.tokens / (times.t_pp + times.t_tg))


def first_token_s(api: Api, model: str, numbers: Numbers) -> float:
    body = {"model": model, "messages": numbers.messages(), "max_tokens": 4, "stream": True, "ignore_eos": True}
    began = time.perf_counter()
    with httpx2.stream("POST", api.url + CHAT, json=body, timeout=LIMIT_S) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return time.perf_counter() - began
    raise AssertionError("an answer without a token")


def first_tokens_s(api: Api, model: str, numbers: Numbers, *, requests: int, pause_s: float) -> list[float]:
    waits = []
    for _ in range(requests):
        waits.append(first_token_s(api, model, numbers))
        time.sleep(pause_s)
    return waits


@contextmanager
def batches_running(api: Api, model: str, numbers: Numbers, options: argparse.Namespace) -> Iterator[None]:
    """One batch after the other, until the end of the block; begins when all slots are busy."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            batch_id = start_batch(api, model, numbers, lines=options.lines, tokens=options.tokens)
            while state_of(api, batch_id)["status"] not in {"completed", "failed", "cancelled"}:
                if is_over.wait(0.5):
                    api.http.post(f"/v1/batches/{batch_id}/cancel")

    feeding = threading.Thread(target=run)
    feeding.start()
    try:
        wait_until(lambda: any(r["in_flight"] >= options.slots for r in api.runners(model)), "all slots are busy")
        yield
    finally:
        is_over.set()
        feeding.join()


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    console, where, numbers = Console(), machine.description(), Numbers()
    name = options.model.stem.lower()
    settings = {"KEEPWARM_SLOTS": str(options.slots), "KEEPWARM_THREADS": str(options.threads)}
    ours: list[float] = []
    theirs: list[float] = []
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="keepwarm-bench-") as folder:
        models = Path(folder) / "models"
        models.mkdir()
        (models / options.model.name).symlink_to(options.model.resolve())
        served = served_model(models / options.model.name, options.slots)
        with Stack(Path(folder) / "home", models, KEEPWARM_MEMORY_BUDGET=options.memory_budget, **settings) as stack:
            api = stack.start_all()
            stack.start_batcher()
            first_token_s(api, name, numbers)  # the load
            prompt_tokens = 0
            for turn in range(options.repeats):
                rate, prompt_tokens = batch_rate(api, name, numbers, lines=options.lines, tokens=options.tokens)
                ours.append(rate)
                if options.batched_bench is not None:
                    theirs.append(engine_rate(served, options, prompt_tokens))
                few = {"requests": options.requests, "pause_s": options.pause}
                alone.append(first_tokens_s(api, name, numbers, **few))
                with batches_running(api, name, numbers, options):
                    beside.append(first_tokens_s(api, name, numbers, **few))
                peer = f" against {theirs[-1]:.0f}" if theirs else ""
                console.print(
                    f"{turn + 1}  {ours[-1]:.0f} tokens/s{peer}; "
                    f"first token p50 and p95 {_worded(alone[-1])} alone, {_worded(beside[-1])} beside a batch"
                )
    result = Result(
        where=where,
        lines=options.lines,
        tokens=options.tokens,
        prompt_tokens=prompt_tokens,
        slots=options.slots,
        threads=options.threads,
        batch_tokens_per_s=ours,
        engine_tokens_per_s=theirs,
        rate_ratio=estimate([our / their for our, their in zip(ours, theirs, strict=True)]) if theirs else None,
        ttft_alone_s=alone,
        ttft_beside_s=beside,
        ttft_p50_ratio=_ratio(beside, alone, 50),
        ttft_p95_ratio=_ratio(beside, alone, 95),
    )
    if result.rate_ratio is not None:
        console.print(f"tokens/s over the bare engine's: {result.rate_ratio.worded(2)}")
    console.print(
        f"first token beside a batch over alone: p50 {result.ttft_p50_ratio.worded(2)}, "
        f"p95 {result.ttft_p95_ratio.worded(2)} (goal ≤ {GOAL_TTFT_RATIO})"
    )
    path = options.out or machine.result_path("batch")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return 0


def _ratio(beside: list[list[float]], alone: list[list[float]], percent: int) -> Estimate:
    return estimate(
        [percentile(late, percent) / percentile(quiet, percent) for late, quiet in zip(beside, alone, strict=True)]
    )


def _worded(waits: list[float]) -> str:
    return f"{percentile(waits, 50) * 1000:.0f} and {percentile(waits, 95) * 1000:.0f} ms"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks batch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument(
        "--batched-bench", type=Path, help="llama-batched-bench of the same llama.cpp; left out: part 2"
    )
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=40, help="interactive ones, per turn and side")
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between two of them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-budget", default="4GiB")
    parser.add_argument("--out", type=Path, help="where to write the figures; benchmarks/results by default")
    return parser
