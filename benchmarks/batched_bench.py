"""llama-batched-bench beside our engine alone: one full batch, without HTTP on either side.

llama-batched-bench neither tokenises nor samples: it is what a batch costs in llama.cpp at least.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.direct_engine import DirectEngine
from benchmarks.engine_workloads import TOKENS_PER_S, Figures
from benchmarks.llama_server import shared_flags
from benchmarks.load import make_load
from workers.engine.base import EngineConfig

SEQUENCES = 64
_CONTEXT_LENGTH = 512  # tokens of a sequence: enough for this, and 64 of them still fit into memory
_LIMIT_S = 600.0
_TRIES = 3  # its log runs in a thread, and now and then the process ends before the result is out


class BatchTimes(msgspec.Struct, frozen=True):
    """Seconds for all prompts and for all answers, after the load of the model."""

    t_pp: float
    t_tg: float


def batch_pairs(
    binary: Path, config: EngineConfig, *, threads: int, num_tokens: int, numbers: range
) -> Iterator[tuple[Figures, Figures]]:
    """(ours, llama-batched-bench's) for each number; both with prompts of the same length."""
    config = dataclasses.replace(config, slots=SEQUENCES, context_length=_CONTEXT_LENGTH)
    with DirectEngine(config) as engine:
        for number in numbers:
            load = make_load(clients=SEQUENCES, requests=1, num_tokens=num_tokens, number=number)
            ours = engine.run(load)
            theirs = run(binary, config, threads, round(ours.prompt_tokens / SEQUENCES), num_tokens)
            yield (
                {TOKENS_PER_S: load.total_tokens / ours.wall_s},
                {TOKENS_PER_S: load.total_tokens / (theirs.t_pp + theirs.t_tg)},
            )


def run(binary: Path, config: EngineConfig, threads: int, prompt_tokens: int, num_tokens: int) -> BatchTimes:
    """One batch that fills all slots of `config`. Raises RuntimeError when it measures nothing."""
    command = [
        *(str(binary), "--model", str(config.model_path), *shared_flags(config, threads)),
        *("-npp", str(prompt_tokens), "-ntg", str(num_tokens), "-npl", str(config.slots)),
        *("--output-format", "jsonl"),
    ]
    for _ in range(_TRIES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if lines and not done.returncode:
            return msgspec.convert(json.loads(lines[-1]), BatchTimes)
    raise RuntimeError(f"llama-batched-bench measured nothing ({done.returncode}): {done.stderr[-2000:]}")
