"""Requests to simulate: Zipf popularity with gamma arrivals, or real popularity, order, arrivals and lengths."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

INTERACTIVE, BATCH = 0, 6
INTERACTIVE_SHARE = 0.8
MAX_CONTEXT = 4096
# Lengths without a trace: log-normal with mean and spread of the Azure conversation trace.
CONTEXT_MEAN, CONTEXT_SIGMA = 1155.0, 0.9
TOKENS_MEAN, TOKENS_SIGMA = 211.0, 0.8


@dataclass(frozen=True, slots=True)
class Request:
    arrival_ms: float
    model: str
    priority: int
    context: int  # tokens of the prompt
    tokens: int  # to generate


def synthetic(
    models: list[str], *, alpha: float, cv: float, rate_per_s: float, duration_s: float, seed: int
) -> list[Request]:
    """Each model is a renewal process with gamma gaps of this coefficient of variation; rates follow Zipf(α)."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, len(models) + 1) ** alpha
    rates = rate_per_s * weights / weights.sum()
    shape = 1 / cv**2
    found = []
    for model, rate in zip(models, rates, strict=True):
        at_s = float(rng.gamma(shape, 1 / (rate * shape)) * rng.random())  # somewhere in the first gap
        while at_s < duration_s:
            found.append((at_s * 1000, model))
            at_s += float(rng.gamma(shape, 1 / (rate * shape)))
    found.sort()
    contexts = _lengths(rng, len(found), CONTEXT_MEAN, CONTEXT_SIGMA)
    tokens = _lengths(rng, len(found), TOKENS_MEAN, TOKENS_SIGMA)
    return _requests(rng, found, contexts, tokens)


def traced(model_csv: Path, azure_csv: Path, *, rate_per_s: float, duration_s: float, seed: int) -> list[Request]:
    """Popularity and order of models from one trace, gaps and lengths from the other, stretched to the rate.

    The seed picks where in both traces to begin."""
    rng = np.random.default_rng(seed)
    names = [row["model"] for row in csv.DictReader(model_csv.open(encoding="utf-8"))]
    rows = list(csv.DictReader(azure_csv.open(encoding="utf-8")))
    times = np.array([datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows])
    gaps = np.diff(times, prepend=times[0])
    count = int(rate_per_s * duration_s)
    start, offset = int(rng.integers(len(names))), int(rng.integers(len(rows)))
    taken = [(offset + number) % len(rows) for number in range(count)]
    stretched = np.cumsum(gaps[taken]) * (1 / rate_per_s) / float(np.mean(gaps))
    found = [
        (float(at_s) * 1000, names[(start + number) % len(names)])
        for number, at_s in enumerate(stretched)
        if at_s < duration_s
    ]
    contexts = np.array([int(rows[index]["ContextTokens"]) for index in taken])
    tokens = np.array([int(rows[index]["GeneratedTokens"]) for index in taken])
    return _requests(rng, found, contexts, tokens)


def trace_models(model_csv: Path) -> list[str]:
    """Model ids of the trace, the most popular first."""
    counts = Counter(row["model"] for row in csv.DictReader(model_csv.open(encoding="utf-8")))
    return [name for name, _ in sorted(counts.items(), key=lambda each: (-each[1], each[0]))]


def _lengths(rng: np.random.Generator, count: int, mean: float, sigma: float) -> np.ndarray:
    return rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)


def _requests(
    rng: np.random.Generator, found: list[tuple[float, str]], contexts: np.ndarray, tokens: np.ndarray
) -> list[Request]:
    is_interactive = rng.random(len(found)) < INTERACTIVE_SHARE
    return [
        Request(
            arrival_ms=at_ms,
            model=model,
            priority=INTERACTIVE if is_interactive[number] else BATCH,
            context=int(min(max(contexts[number], 1), MAX_CONTEXT)),
            tokens=int(min(max(tokens[number], 1), MAX_CONTEXT)),
        )
        for number, (at_ms, model) in enumerate(found)
    ]
