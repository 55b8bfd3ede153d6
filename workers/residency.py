"""Which models to load and which to stop, so that a worker comes closer to its placement. Pure.

Desired state in, steps out; called again after every change, so a step may be taken only when its bytes are free now,
and what still waits for a drain is simply asked for again later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from workers.eviction import Candidate, NoVictims, Victims, choose_victims


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A model that the placement holds and that is not resident. `disk`: that its load would read from, by number; None
    where it would read none, or nobody can tell."""

    model: str
    bytes: int
    disk: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencySteps:
    """What to do now. `refused` maps a model to what stands in its way; `waiting` ones wait for bytes or for a disk."""

    load: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def plan_residency(
    *,
    wanted: Sequence[Wanted],
    residents: Sequence[Candidate],
    free_bytes: int,
    leaving_bytes: int,
    disks_in_use: AbstractSet[int] = frozenset(),
) -> ResidencySteps:
    """Walk through `wanted` in its order.

    `free_bytes` can be used now; `leaving_bytes` come free when runners that are already on their way out are gone.
    From `disks_in_use` loads read already: of two that read from one disk side by side, each takes as long as both, and
    nobody is served any sooner. So the next one waits, but not those that the page cache has.
    Every wanted model claims its bytes from both, so that a small load that fits now may overtake a large one that
    waits, without ever eating what the large one waits for.

    1. Unclaimed bytes suffice, and they are free now: load. They are still leaving: wait.
    2. They don't: stop the cheapest idle runners that nobody wants, or, if those are too few, busy ones as well.
       What is free now may still be used at once; the victims' bytes then replace it.
    3. Not even that helps, but a start that nobody wants any more is under way: wait until it can be stopped.
    4. Otherwise: refused, with what stands in the way.
    """
    load: list[str] = []
    waiting: list[str] = []
    stop: list[str] = []
    refused: dict[str, str] = {}
    unclaimed = free_bytes + leaving_bytes
    free = free_bytes
    remaining = list(residents)
    busy_disks = set(disks_in_use)
    for want in wanted:
        missing = want.bytes - unclaimed
        if missing > 0:
            answer = _choose(remaining, missing)
            if isinstance(answer, NoVictims):
                if _could_fit_later(remaining, missing):
                    waiting.append(want.model)
                    unclaimed = min(unclaimed, 0)  # the later ones must not eat what it waits for
                else:
                    refused[want.model] = answer.reason
                continue
            stop += answer.models
            unclaimed += sum(each.bytes for each in remaining if each.model in answer.models)
            remaining = [each for each in remaining if each.model not in answer.models]
        unclaimed -= want.bytes
        if want.bytes <= free and want.disk not in busy_disks:
            free -= want.bytes
            load.append(want.model)
            busy_disks.update(() if want.disk is None else (want.disk,))
        else:
            waiting.append(want.model)
    return ResidencySteps(load=tuple(load), stop=tuple(stop), waiting=tuple(waiting), refused=refused)


def _choose(residents: Sequence[Candidate], missing: int) -> Victims | NoVictims:
    idle = choose_victims(residents, missing, allow_busy=False)
    return idle if isinstance(idle, Victims) else choose_victims(residents, missing, allow_busy=True)


def _could_fit_later(residents: Sequence[Candidate], missing: int) -> bool:
    """With starting runners that the placement does not hold counted as movable."""
    settled = [replace(each, is_settled=True) for each in residents]
    return isinstance(choose_victims(settled, missing, allow_busy=True), Victims)
