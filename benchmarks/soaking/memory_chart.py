"""Memory over time as SVG: the whole system under its limit, and below it each process that stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from benchmarks.soaking.flatness import Sample
from benchmarks.soaking.watch import PoolUse

MIB = 1024**2
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _GAP = 560, 170, 60, 210, 40, 50
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#ff7f0e")
Line = list[tuple[float, float]]  # (seconds, bytes)


def memory_chart(title: str, pool: Sequence[PoolUse], samples: Sequence[Sample], limit_bytes: int | None) -> str:
    system: dict[str, Line] = {"ledger: runners": [(each.at_s, each.ledger_bytes) for each in pool]}
    grouped = [(each.at_s, each.group) for each in pool if each.group is not None]
    if grouped and limit_bytes is not None:
        system["private, all processes"] = [(at_s, use.private_bytes) for at_s, use in grouped]
        system["and page cache"] = [(at_s, use.private_bytes + use.cached_bytes) for at_s, use in grouped]
        system["limit"] = [(grouped[0][0], limit_bytes), (grouped[-1][0], limit_bytes)]
    processes: dict[str, Line] = {}
    for each in samples:
        processes.setdefault(f"{each.process}, private", []).append((each.at_s, each.private_bytes))
    end_s = max((at_s for line in (*system.values(), *processes.values()) for at_s, _ in line), default=0.0)
    height = _TOP + 2 * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
        *_panel(system, _TOP, end_s),
        *_panel(processes, _TOP + _HEIGHT + _GAP, end_s),
        f'<text x="{_LEFT + _WIDTH}" y="{height - 14}" text-anchor="end" fill="#555">minutes</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(lines: dict[str, Line], top: int, end_s: float) -> list[str]:
    highest = max((y for line in lines.values() for _, y in line), default=0.0) * 1.05 or 1.0

    def x_of(at_s: float) -> float:
        return _LEFT + _WIDTH * at_s / max(end_s, 1.0)

    def y_of(count: float) -> float:
        return top + _HEIGHT * (1 - count / highest)

    parts = [f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888"/>']
    parts += _ticks(highest, end_s, top, x_of, y_of)
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_of(at_s):.1f},{y_of(count):.1f}" for at_s, count in line)
        x, y = _LEFT + _WIDTH + 10, top + 14 + 17 * number
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>',
            f'<line x1="{x}" x2="{x + 16}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2.5"/>',
            f'<text x="{x + 22}" y="{y + 4}">{escape(name)}</text>',
        ]
    return parts


def _ticks(
    highest: float, end_s: float, top: int, x_of: Callable[[float], float], y_of: Callable[[float], float]
) -> list[str]:
    parts = []
    for count in range(0, int(highest) + 1, _step(highest / MIB) * MIB):
        y = y_of(count)
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{count // MIB} MiB</text>')
    for minute in range(0, int(end_s / 60) + 1, _step(end_s / 60)):
        parts.append(f'<text x="{x_of(minute * 60):.1f}" y="{top + _HEIGHT + 15}" text-anchor="middle">{minute}</text>')
    return parts


def _step(span: float) -> int:
    """A round number, so that there are at most six ticks."""
    return next(step for power in range(9) for step in (10**power, 2 * 10**power, 5 * 10**power) if span <= 6 * step)
