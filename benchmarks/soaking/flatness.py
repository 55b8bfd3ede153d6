"""Does a process grow? Pure.

The first third of the run, in which caches fill, is left out. The last third of the rest is compared with its first:
the medians of private memory, and the fewest and the most descriptors and threads: a worker has some of each for every
model that is warm, so either may come to more by chance. A leak raises both; a single peak, or the moment at which one
looks, does not."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import linear_regression, median

import msgspec

SETTLED_SHARE = 1 / 3
MAX_GROWTH_SHARE = 0.03  # of its private memory, from the middle of the run to its end
MAX_GROWTH_BYTES = 4 * 1024**2  # which is allowed in any case: one arena of malloc
MAX_COUNT_GROWTH = 2  # descriptors or threads
FEWEST_MINUTES = 10  # before any verdict: until then every process is still getting to know its work


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One process at one moment."""

    at_s: float
    process: str
    rss_bytes: int
    pss_bytes: int
    private_bytes: int  # without pages of files, which the kernel takes back under pressure
    descriptors: int
    threads: int


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """Of one process behind the first third of the run."""

    process: str
    private_bytes: float  # median at the end, less the median at the begin
    private_bytes_per_h: float  # slope of the least squares
    descriptors: int
    threads: int
    last: Sample
    is_flat: bool | None  # None: too short to tell


def growth_of(samples: Sequence[Sample]) -> list[Growth]:
    """One entry per process that was seen."""
    return [
        _growth([each for each in samples if each.process == name])
        for name in dict.fromkeys(each.process for each in samples)
    ]


def _growth(samples: Sequence[Sample]) -> Growth:
    settled = samples[int(len(samples) * SETTLED_SHARE) :]
    third = max(1, len(settled) // 3)
    begin, end = settled[:third], settled[-third:]

    before = median(each.private_bytes for each in begin)
    private = median(each.private_bytes for each in end) - before
    descriptors = _risen([each.descriptors for each in begin], [each.descriptors for each in end])
    threads = _risen([each.threads for each in begin], [each.threads for each in end])
    allowed = max(MAX_GROWTH_BYTES, MAX_GROWTH_SHARE * before)
    is_flat = private <= allowed and descriptors <= MAX_COUNT_GROWTH and threads <= MAX_COUNT_GROWTH
    return Growth(
        process=samples[0].process,
        private_bytes=private,
        private_bytes_per_h=_slope(settled) * 3600,
        descriptors=descriptors,
        threads=threads,
        last=samples[-1],
        is_flat=is_flat if samples[-1].at_s >= FEWEST_MINUTES * 60 else None,
    )


def _risen(begin: Sequence[int], end: Sequence[int]) -> int:
    """By so much has the whole range gone up."""
    return min(min(end) - min(begin), max(end) - max(begin))


def _slope(samples: Sequence[Sample]) -> float:
    """Bytes per second."""
    times = [each.at_s for each in samples]
    if len(set(times)) < 2:
        return 0.0
    return linear_regression(times, [each.private_bytes for each in samples]).slope
