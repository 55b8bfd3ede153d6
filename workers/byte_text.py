"""Bytes as people read them, and sums of bytes in one unit. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(count: int) -> str:
    """`2147483648` as `2.0 GiB`."""
    power = _power(count)
    return f"{_scaled(count, power)} {_UNITS[power]}"


def format_sum(total: int, parts: Sequence[tuple[str, int]]) -> str:
    """`3.2 GiB = weights 2.1 + KV 0.9 + compute 0.2`: everything in the unit of the total, zero parts left out."""
    power = _power(total)
    terms = " + ".join(f"{name} {_scaled(count, power)}" for name, count in parts if count)
    return f"{_scaled(total, power)} {_UNITS[power]} = {terms}"


def _power(count: int) -> int:
    power = 0
    while power < len(_UNITS) - 1 and abs(count) >= 1024 ** (power + 1):
        power += 1
    return power


def _scaled(count: int, power: int) -> str:
    return str(count) if power == 0 else f"{count / 1024**power:.1f}"
