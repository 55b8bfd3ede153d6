"""The known name that a misspelt one probably means. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_COMPARED_CHARS = 64  # comparing takes the product of both lengths, and clients choose one of them


def nearest(name: str, known: Iterable[str]) -> str | None:
    """None when nothing is near."""
    return next(iter(get_close_matches(name[:MAX_COMPARED_CHARS], list(known), n=1)), None)
