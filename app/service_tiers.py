"""OpenAI's service tiers as priorities. Pure."""

from __future__ import annotations

from typing import Literal

from tasks.jobs import Priority

ServiceTier = Literal["auto", "default", "flex", "priority", "scale"]

# `auto` and no tier at all leave it to the route, as with OpenAI; `scale` is paid-for capacity there.
_LEVELS = {
    "flex": Priority.BATCH,
    "default": Priority.DEFAULT,
    "priority": Priority.INTERACTIVE,
    "scale": Priority.INTERACTIVE,
}
_TIERS = {Priority.BATCH: "flex", Priority.DEFAULT: "default", Priority.INTERACTIVE: "priority"}


def level_of(tier: ServiceTier | None, otherwise: Priority) -> Priority:
    """`otherwise`: how urgent the route's requests are that ask for no tier."""
    return otherwise if tier is None else _LEVELS.get(tier, otherwise)


def served_tier(asked: ServiceTier | None, level: Priority) -> str | None:
    """What an answer says: the tier that its job had, whatever was asked for; None when nothing was."""
    return None if asked is None else _TIERS[level]
