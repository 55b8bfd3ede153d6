"""Who asks for which model when: real or random orders, arrivals and lengths, scaled to what one machine can do. Pure.

The order of models comes from a request log with the columns seconds, model, exec_s (such as one derived from
alibaba/clusterdata, cluster-trace-v2026-GenAI). Arrivals and lengths come from AzureLLMInferenceTrace_conv.csv of
Azure/AzurePublicDataset: TIMESTAMP, ContextTokens, GeneratedTokens. The benchmark takes paths and ships neither.
"""

from __future__ import annotations

import csv
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

ZIPF_EXPONENT = 1.1
ARRIVALS_CV = 2.0
CONTEXT_LOG = (6.65, 0.9)  # mean and deviation of the logarithm of tokens
GENERATED_LOG = (5.03, 0.8)


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the schedule."""

    at_s: float  # since the start
    model: str
    prompt_tokens: int  # roughly: words of the prompt
    num_tokens: int  # of the answer, exactly


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How the traces are fitted to the machine."""

    rate_per_s: float  # mean arrivals
    num_requests: int
    length_divisor: int  # of prompts and answers
    longest_prompt: int = 512  # tokens, after the division
    longest_answer: int = 64


def make_schedule(models: Sequence[str], orders: Path, arrivals: Path, scale: Scale, *, seed: int) -> tuple[Ask, ...]:
    """The most wanted names of the log stand for `models`, in an order of their own (which model is popular has
    nothing to do with its size). `seed` chooses that order and the windows of both traces."""
    rng = random.Random(seed)
    wanted = _window(_order(orders, len(models)), scale.num_requests, rng)
    names = sorted(set(_order(orders, len(models))))
    stand_in = dict(zip(names, rng.sample(list(models), len(models)), strict=True))
    times, lengths = _arrivals(arrivals, scale, rng)
    return tuple(
        _ask(at_s, stand_in[name], context, generated, scale)
        for at_s, name, (context, generated) in zip(times, wanted, lengths, strict=True)
    )


def zipf_schedule(models: Sequence[str], scale: Scale, *, seed: int) -> tuple[Ask, ...]:
    """Without traces: popularity by Zipf's law, gamma arrivals with a coefficient of variation of 2, and log-normal
    lengths with about the mean and spread of the Azure conversation trace."""
    rng = random.Random(seed)
    popular = rng.sample(list(models), len(models))
    weights = [1 / rank**ZIPF_EXPONENT for rank in range(1, len(popular) + 1)]
    names = rng.choices(popular, weights, k=scale.num_requests)
    shape = 1 / ARRIVALS_CV**2
    gaps = [rng.gammavariate(shape, 1 / shape) for _ in range(scale.num_requests - 1)]
    return tuple(
        _ask(at_s, name, round(rng.lognormvariate(*CONTEXT_LOG)), round(rng.lognormvariate(*GENERATED_LOG)), scale)
        for at_s, name in zip(_stretched(gaps, scale), names, strict=True)
    )


def _ask(at_s: float, model: str, context: int, generated: int, scale: Scale) -> Ask:
    return Ask(
        at_s=at_s,
        model=model,
        prompt_tokens=min(scale.longest_prompt, max(4, context // scale.length_divisor)),
        num_tokens=min(scale.longest_answer, max(2, generated // scale.length_divisor)),
    )


def _stretched(gaps: Sequence[float], scale: Scale) -> list[float]:
    """Times from 0 on, at the mean rate that is wanted."""
    stretch = (scale.num_requests - 1) / scale.rate_per_s / max(sum(gaps), 1e-9)
    return [0.0, *itertools.accumulate(gap * stretch for gap in gaps)]


def _order(path: Path, num_models: int) -> list[str]:
    with path.open(newline="") as file:
        asked = [row["model"] for row in csv.DictReader(file)]
    popular = {name for name, _ in Counter(asked).most_common(num_models)}
    return [name for name in asked if name in popular]


def _window(items: list[str], length: int, rng: random.Random) -> list[str]:
    if length > len(items):
        raise ValueError(f"the log has {len(items)} requests of these models, {length} are asked for")
    start = rng.randrange(len(items) - length + 1)
    return items[start : start + length]


def _arrivals(path: Path, scale: Scale, rng: random.Random) -> tuple[list[float], list[tuple[int, int]]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    start = rng.randrange(len(rows) - scale.num_requests)
    window = rows[start : start + scale.num_requests]
    stamps = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in window]
    gaps = [max(0.0, later - earlier) for earlier, later in itertools.pairwise(stamps)]
    return _stretched(gaps, scale), [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in window]
