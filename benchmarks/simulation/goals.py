"""What the policy should reach, what it reaches, and what anybody could: each goal in each scenario.

A miss means little where a rule that knows all arrivals misses too. So the same figure of two bounds stands beside
ours: clairvoyant eviction, which loads on request like everybody else but always lets go what is needed last; and a
fleet without a memory limit, which never waits for a load. The first is no strict bound: it never takes from a busy
model what another one needs more, and reads nothing ahead. The second is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from benchmarks.simulation.baselines import Clairvoyant, OnDemand, Unlimited
from benchmarks.simulation.keepwarm_policy import KeepwarmPolicy
from benchmarks.simulation.trial import Figures
from benchmarks.spread import Estimate, estimate

OURS, PEER = KeepwarmPolicy().name, OnDemand.name
CLAIRVOYANT, UNLIMITED = Clairvoyant().name, Unlimited.name

Seeds = Mapping[int, Mapping[str, Figures]]  # seed → policy → its figures, of one scenario


def p95_ratios(seeds: Seeds, of: str, to: str) -> list[float]:
    """Interactive P95 of one policy over that of another, paired by seed."""
    return [each[of].ttft_p95_s / max(each[to].ttft_p95_s, 1e-3) for _, each in sorted(seeds.items())]


@dataclass(frozen=True, slots=True)
class Goal:
    name: str
    limit: float  # at most
    applies: Callable[[float | None], bool]  # to a scenario's α, None for the traces
    values: Callable[[Seeds, str], list[float]]  # of a policy, by seed


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over seeds; `clairvoyant` and `no_memory_limit` are the same figure of these bounds."""

    goal: str
    scenario: str
    limit: float
    value: Estimate
    clairvoyant: float
    no_memory_limit: float | None
    is_reached: bool
    is_clairvoyant_there: bool  # whether clairvoyant eviction reaches it


GOALS = (
    Goal(
        "P95 at least 30 % below LRU + affinity, α 0.9 to 1.3", 0.7, lambda alpha: alpha in (0.9, 1.3),
        lambda seeds, policy: p95_ratios(seeds, policy, PEER),
    ),
    Goal(
        "P95 at least 70 % below LRU + affinity, α 1.7", 0.3, lambda alpha: alpha == 1.7,
        lambda seeds, policy: p95_ratios(seeds, policy, PEER),
    ),
    Goal(
        "P95 below LRU + affinity, everywhere", 1.0, lambda alpha: True,
        lambda seeds, policy: p95_ratios(seeds, policy, PEER),
    ),
    Goal(
        "P95 at most 1.2 × clairvoyant eviction", 1.2, lambda alpha: True,
        lambda seeds, policy: p95_ratios(seeds, policy, CLAIRVOYANT),
    ),
    Goal(
        "at most 10 % of the workers' time goes into loads", 0.1, lambda alpha: True,
        lambda seeds, policy: [each[policy].load_share for _, each in sorted(seeds.items())],
    ),
    Goal(
        "no model waits beyond the bound of the policy in any run", 1.0, lambda alpha: True,
        lambda seeds, policy: [max(each[policy].bound_share for each in seeds.values())],
    ),
    Goal(
        "no job is left over in any run", 0.0, lambda alpha: True,
        lambda seeds, policy: [float(max(each[policy].unfinished for each in seeds.values()))],
    ),
)  # fmt: skip


def verdicts(scenario: str, alpha: float | None, seeds: Seeds) -> Iterable[Verdict]:
    """Of the goals that apply to this scenario."""
    has_unlimited = all(UNLIMITED in each for each in seeds.values())
    for goal in GOALS:
        if goal.applies(alpha):
            value = estimate(goal.values(seeds, OURS))
            clairvoyant = float(np.median(goal.values(seeds, CLAIRVOYANT)))
            yield Verdict(
                goal=goal.name,
                scenario=scenario,
                limit=goal.limit,
                value=value,
                clairvoyant=clairvoyant,
                no_memory_limit=float(np.median(goal.values(seeds, UNLIMITED))) if has_unlimited else None,
                is_reached=value.median <= goal.limit,
                is_clairvoyant_there=clairvoyant <= goal.limit,
            )


def lines(found: list[Verdict]) -> Iterable[str]:
    """For people: each goal with its misses, and which of those clairvoyant eviction misses too."""
    for goal in GOALS:
        held = [each for each in found if each.goal == goal.name]
        missed = [each for each in held if not each.is_reached]
        line = f"{goal.name}: {len(held) - len(missed)} of {len(held)}"
        for kind, is_there in (("missed by clairvoyant eviction too", False), ("missed by us alone", True)):
            named = [
                f"{each.scenario}: {each.value.worded(2)} (clairvoyant {each.clairvoyant:.2f})"
                for each in missed
                if each.is_clairvoyant_there is is_there
            ]
            if named:
                line += f"; {kind}: {'; '.join(named)}"
        yield line
