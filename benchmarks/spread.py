"""Medians with confidence intervals. Pure and deterministic."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

RESAMPLES = 10_000


class Estimate(msgspec.Struct, frozen=True):
    """A median with its 95 % confidence interval (bootstrap over the pairs)."""

    median: float
    low: float
    high: float

    def worded(self, digits: int) -> str:
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Percentile bootstrap of the median (Efron 1979)."""
    sample = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).choice(sample, size=(RESAMPLES, len(sample)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(sample)), float(low), float(high))


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(np.asarray(values, dtype=float), percent))
