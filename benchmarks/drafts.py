"""Speculative decoding: tokens per second with drafts, as ratios to an engine without, on text that repeats and not.

Both engines are in this process and take turns, pair by pair. A model that quotes its prompt is imitated by a
constraint that allows the prompt's tokens only, so any model will do. The texts of both are compared to the token.

With `--deeper N` the model is a copy of the demo model with N times as many blocks, of which the others add nothing: it
says the same, N times as slowly. Its draft models are the demo model itself, which always knows what it will say, and
copies with noise on their weights, which know it less and less. With `--draft` it is any model of the same vocabulary.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.spread import Estimate, estimate
from tasks.generation import GenerationRequest, SamplingParams
from tools.variant_gguf import write_variant
from workers.engine.base import DraftConfig, EngineConfig
from workers.engine.kv_types import STEADY
from workers.engine.llama_draft import LlamaDraft
from workers.engine.llama_generating import LlamaContext
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_model import LlamaModel
from workers.engine.step_loop import StepLoop
from workers.gguf_header import read_header
from workers.messages import Generate, TokenOut
from workers.model_shape import has_steady_weights

STORY = (
    "A small stone lay warm by a quiet river. A green bird came every morning, sat on it and sang. One day it rained "
    "for so long that the water rose, and the stone was cold. The bird came all the same, and waited for the sun. "
)
PIECE = 24  # tokens that are quoted or free in turn
LOADS = ("quoted text", "quotes in free text", "free text")
DEMO_MODELS = Path(__file__).resolve().parents[1] / "models"
NOISES = (0.15, 2.0)  # on the weights of the draft models for `--deeper`
SAMPLING = {"greedy": SamplingParams(temperature=0.0), "seeded": SamplingParams(temperature=0.8, seed=7)}


class Finding(msgspec.Struct, frozen=True):
    draft: str
    load: str
    sampling: str
    sequences: int
    ratio: Estimate  # of tokens per second, with drafts to without
    tokens_per_step: float  # of one sequence


class Quoting:
    """A Constraint: only the next token of a text may follow; with `piece`, so many free ones stand in between."""

    def __init__(self, text: Sequence[int], piece: int, vocabulary_size: int) -> None:
        self._text = text
        self._piece = piece
        self._size = vocabulary_size
        self._taken = 0

    def _next(self) -> int | None:
        is_free = self._piece and self._taken // self._piece % 2
        return None if is_free else self._text[self._taken % len(self._text)]

    def allows(self, token: int) -> bool:
        return self._next() in (None, token)

    def mask(self) -> npt.NDArray[np.bool_]:
        mask = np.zeros(self._size, dtype=np.bool_)
        mask[self._next()] = True
        return mask

    def take(self, token: int) -> bool:
        self._taken += 1
        return False


class Bench:
    """One model in two loops, with and without drafts; `draft` is what the draft model is called."""

    def __init__(self, config: EngineConfig, num_tokens: int, draft: str, clock_s: Callable[[], float]) -> None:
        self._draft = draft
        self._clock_s = clock_s
        log = LlamaLog()
        self._model = LlamaModel(config.model_path, log, gpu_layers=config.gpu_layers, use_extra_bufts=False)
        self._num_tokens = num_tokens
        self.is_exact = config.gpu_layers == 0 and config.has_steady_weights  # else logits depend on a batch's shape
        self.drafting, self.plain = (
            self._loop(each, log) for each in (config, replace(config, draft_tokens=0, draft=None))
        )

    def _loop(self, config: EngineConfig, log: LlamaLog) -> StepLoop:
        context = LlamaContext(self._model, config, log)
        draft = LlamaDraft(config, config.draft, self._model, log, turn=context.turn) if config.draft else None
        return StepLoop(
            context,
            slots=config.slots,
            context_length=config.context_length,
            prefill_chunk=config.prefill_chunk,
            draft_model=draft.model if draft else None,
            monotonic_s=self._clock_s,
        )

    def compare(self, load: str, sampling: str, sequences: int, pairs: int) -> Finding:
        """One more pair runs before the first that counts, in which the policy learns what drafts cost."""
        ratios, steps = [], 0
        for pair in range(pairs + 1):
            order = (self.drafting, self.plain) if pair % 2 else (self.plain, self.drafting)
            runs = {loop: self._generate(loop, load, sampling, sequences) for loop in order}
            if self.is_exact and runs[self.drafting][2] != runs[self.plain][2]:
                raise AssertionError(f"drafts changed the text: {self._draft}, {load}, {sampling}")
            if pair:
                ratios.append(runs[self.plain][0] / runs[self.drafting][0])
                steps += runs[self.drafting][1]
        return Finding(self._draft, load, sampling, sequences, estimate(ratios), self._num_tokens * pairs / steps)

    def _generate(
        self, loop: StepLoop, load: str, sampling: str, sequences: int
    ) -> tuple[float, int, dict[int, list[int]]]:
        """Seconds and steps behind the first tokens, and the tokens of each sequence."""
        ids = self._model.tokenize(f"Say this: {STORY}", add_special=True)
        text = self._model.tokenize(STORY, add_special=False)
        for key in range(sequences):
            request = GenerationRequest(
                model="", prompt="", sampling=SAMPLING[sampling], max_tokens=self._num_tokens, ignore_eos=True
            )
            piece = PIECE if load == "quotes in free text" else 0
            constraint = None if load == "free text" else Quoting(text, piece, len(self._model.vocabulary))
            loop.add(loop.sequence(Generate(key=key, request=request), ids, constraint))
        said: dict[int, list[int]] = {}
        began, steps = 0.0, 0
        while loop.has_work:
            outputs = loop.step()
            steps += 1
            for output in outputs:
                if isinstance(output, TokenOut):
                    said.setdefault(output.key, []).extend(output.ids)
            if not began and len(said) == sequences:
                began, steps = self._clock_s(), 0
        return self._clock_s() - began, steps, said


def variants(times: int, folder: Path) -> tuple[Path, dict[str, Path]]:
    """A model that is so many times as deep as the demo model, and draft models by name, the worst last."""
    demo = DEMO_MODELS / "keepwarm-demo-q8_0.gguf"
    large = write_variant(demo, folder / "deep.gguf", deeper=times)
    drafts = {"demo model": demo} | {
        f"demo model with noise {noise}": write_variant(
            DEMO_MODELS / "keepwarm-demo-f16.gguf", folder / f"noise-{noise}.gguf", noise=noise
        )
        for noise in NOISES
    }
    return large, drafts


def measure(options: argparse.Namespace, model: Path, draft: Path | None, name: str) -> list[Finding]:
    config = EngineConfig(
        model_path=model,
        context_length=options.tokens + 256,
        slots=max(options.sequences),
        threads=options.threads,
        kv_type="f16" if options.gpu_layers else STEADY,
        gpu_layers=options.gpu_layers,
        use_extra_bufts=False,
        has_steady_weights=has_steady_weights([read_header(model)]),
    )
    if draft is not None:
        config = replace(
            config,
            draft=DraftConfig(
                model_path=draft, context_length=config.context_length, threads=options.draft_threads or options.threads
            ),
        )
    bench = Bench(config, options.tokens, name, time.process_time if options.cpu_time else time.perf_counter)
    findings = []
    for load in options.loads:
        for sampling in SAMPLING:
            for sequences in options.sequences:
                finding = bench.compare(load, sampling, sequences, options.pairs)
                findings.append(finding)
                print(
                    f"{name}, {load}, {sampling}, {sequences} at once: {finding.ratio.worded(2)} times the tokens/s, "
                    f"{finding.tokens_per_step:.2f} tokens per step",
                    flush=True,
                )
    return findings


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks drafts", description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_MODELS / "keepwarm-demo-q8_0.gguf")
    parser.add_argument("--draft", type=Path, help="a draft model for it")
    parser.add_argument("--deeper", type=int, help="so many times as deep as the demo model, in place of --model")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draft-threads", type=int, help="as many as --threads by default")
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2], help="that generate at once")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="for busy machines: seconds of CPU time, with one thread",
    )
    parser.add_argument("--json", type=Path, help="write the findings here")
    options = parser.parse_args(arguments)
    if options.deeper:
        with tempfile.TemporaryDirectory() as folder:
            model, drafts = variants(options.deeper, Path(folder))
            findings = [each for name, draft in drafts.items() for each in measure(options, model, draft, name)]
    else:
        name = options.draft.stem if options.draft else "text alone"
        findings = measure(options, options.model, options.draft, name)
    if options.json:
        options.json.write_text(json.dumps(msgspec.to_builtins(findings), indent=1) + "\n", "utf-8")
    return 0
