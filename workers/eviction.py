"""Choose which idle runners make room for a load. Pure: no processes, no clock, no logging.

A runner's keep-value is the expected cost of having to load it again soon:
V = (1 - e^(-rate·H)) · L · (1 + rate·L/2), with H the horizon and L the load time in seconds: how likely it is to be
asked for within the horizon, times the wait of the first request and of those that arrive during the load. Runners go
in the order of V per byte, because a large cold model frees more for less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HORIZON_S = 45.0  # below about 40 s a pool thrashes, above about 80 s it hoards
RATE_WINDOW_S = 60.0  # time constant of the moving average of a model's requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One runner as far as eviction is concerned."""

    model: str
    bytes: int
    keep_value: float
    is_idle: bool
    is_held: bool  # the placement wants it
    is_pinned: bool
    is_settled: bool  # ready: neither starting nor already on its way out

    @property
    def may_go(self) -> bool:
        return self.is_settled and not self.is_held and not self.is_pinned

    @property
    def density(self) -> float:
        return self.keep_value / max(self.bytes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Victims:
    """The runners to stop; together they free enough. Empty when nothing has to go."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoVictims:
    """Nothing that may go frees enough; `reason` names what stands in the way."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRate:
    """Moving average of a model's requests, per second. `at_ms` is when it was last updated."""

    per_s: float = 0.0
    at_ms: int = 0

    def at(self, now_ms: int) -> UseRate:
        """The same average, faded to now."""
        age_s = max(0, now_ms - self.at_ms) / 1000
        return UseRate(per_s=self.per_s * math.exp(-age_s / RATE_WINDOW_S), at_ms=now_ms)

    def with_request(self, now_ms: int) -> UseRate:
        faded = self.at(now_ms)
        return UseRate(per_s=faded.per_s + 1 / RATE_WINDOW_S, at_ms=now_ms)


def keep_value(*, rate_per_s: float, load_ms: int) -> float:
    """Seconds of waiting that keeping the runner is expected to save."""
    load_s = load_ms / 1000
    return (1 - math.exp(-rate_per_s * HORIZON_S)) * load_s * (1 + rate_per_s * load_s / 2)


def choose_victims(candidates: Sequence[Candidate], bytes_to_free: int, *, allow_busy: bool) -> Victims | NoVictims:
    """The cheapest set that frees `bytes_to_free`, found before anything is stopped.

    1. Idle runners go in the order of keep-value per byte, ids breaking ties.
    2. With `allow_busy`, busy ones follow in the same order when the idle ones are not enough.
    3. A runner that turns out unnecessary, because a later and larger one frees enough, stays; the dearest first.
    """
    movable = [each for each in candidates if each.may_go and (each.is_idle or allow_busy)]
    movable.sort(key=lambda each: (not each.is_idle, each.density, each.model))
    chosen: list[Candidate] = []
    freed = 0
    for candidate in movable:
        if freed >= bytes_to_free:
            break
        chosen.append(candidate)
        freed += candidate.bytes
    if freed < bytes_to_free:
        return NoVictims(reason=_obstacles(candidates, allow_busy=allow_busy))
    return Victims(models=tuple(each.model for each in _without_unneeded(chosen, freed - bytes_to_free)))


def _without_unneeded(chosen: Iterable[Candidate], surplus: int) -> list[Candidate]:
    kept = list(chosen)
    for candidate in sorted(kept, key=lambda each: (each.is_idle, -each.keep_value, each.model)):
        if candidate.bytes <= surplus:
            kept.remove(candidate)
            surplus -= candidate.bytes
    return kept


def _obstacles(candidates: Sequence[Candidate], *, allow_busy: bool) -> str:
    staying = [each for each in candidates if not (each.may_go and (each.is_idle or allow_busy))]
    groups = (
        ("pinned", [each.model for each in staying if each.is_pinned]),
        ("held by the placement", [each.model for each in staying if each.is_held and not each.is_pinned]),
        ("starting or leaving", [each.model for each in staying if _is_in_passage(each)]),
        ("busy", [each.model for each in staying if each.may_go]),
    )
    named = [
        f"{', '.join(sorted(models))} {'is' if len(models) == 1 else 'are'} {why}" for why, models in groups if models
    ]
    return "; ".join(named) if named else "nothing is left to evict"


def _is_in_passage(candidate: Candidate) -> bool:
    return not (candidate.is_settled or candidate.is_held or candidate.is_pinned)
