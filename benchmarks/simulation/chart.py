"""Line charts as SVG, without a plotting library: panels side by side, a logarithmic y axis, bars for intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

COLOURS = (
    "#d62728", "#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f",
    "#393b79", "#000000",
)  # fmt: skip
PANEL_W, PANEL_H, LEFT, TOP, BOTTOM, LEGEND_W = 250, 240, 56, 46, 44, 190


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    lines: dict[str, list[Point]] = field(default_factory=dict)


def line_chart(title: str, x_label: str, y_label: str, panels: Sequence[Panel], *, footer: str = "") -> str:
    """All panels share both axes. Names keep their colour from panel to panel."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    points = [point for panel in panels for line in panel.lines.values() for point in line]
    xs = sorted({point.x for point in points})
    low = 10 ** math.floor(math.log10(max(1e-3, min(max(point.low, 1e-3) for point in points))))
    high = 10 ** math.ceil(math.log10(max(point.high for point in points)))
    width = LEFT + len(panels) * PANEL_W + LEGEND_W
    height = TOP + PANEL_H + BOTTOM + 18
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="16" font-size="14">{escape(title)}</text>',
        f'<text x="12" y="{TOP + PANEL_H / 2}" transform="rotate(-90 12 {TOP + PANEL_H / 2})" '
        f'text-anchor="middle">{escape(y_label)}</text>',
        f'<text x="{LEFT}" y="{height - 6}" fill="#555">{escape(footer)}</text>',
    ]

    def y_of(value: float) -> float:
        share = (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))
        return TOP + PANEL_H * (1 - share)

    for number, panel in enumerate(panels):
        left = LEFT + number * PANEL_W

        def x_of(value: float, left: float = left) -> float:
            span = (xs[-1] - xs[0]) or 1.0
            return left + 14 + (PANEL_W - 40) * (value - xs[0]) / span

        parts += _frame(panel.title, x_label, left, low, high, xs, x_of, y_of)
        for name, line in panel.lines.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            wide = 2.6 if names.index(name) == 0 else 1.3
            path = " ".join(f"{x_of(point.x):.1f},{y_of(point.y):.1f}" for point in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{wide}"/>')
            for point in line:
                x = x_of(point.x)
                parts.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_of(point.low):.1f}" y2="{y_of(point.high):.1f}" '
                    f'stroke="{colour}" stroke-opacity="0.5"/>'
                    f'<circle cx="{x:.1f}" cy="{y_of(point.y):.1f}" r="2.2" fill="{colour}"/>'
                )
    for number, name in enumerate(names):
        x, y = LEFT + len(panels) * PANEL_W + 6, TOP + 8 + 17 * number
        parts.append(
            f'<line x1="{x}" x2="{x + 18}" y1="{y}" y2="{y}" stroke="{COLOURS[number % len(COLOURS)]}" '
            f'stroke-width="2.5"/><text x="{x + 24}" y="{y + 4}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _frame(title, x_label, left, low, high, xs, x_of, y_of) -> list[str]:
    right = left + PANEL_W - 20
    parts = [
        f'<rect x="{left}" y="{TOP}" width="{PANEL_W - 20}" height="{PANEL_H}" fill="none" stroke="#888"/>',
        f'<text x="{(left + right) / 2}" y="{TOP - 8}" text-anchor="middle">{escape(title)}</text>',
        f'<text x="{(left + right) / 2}" y="{TOP + PANEL_H + 32}" text-anchor="middle">{escape(x_label)}</text>',
    ]
    tick = low
    while tick <= high * 1.001:
        y = y_of(tick)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        if left == LEFT:
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        tick *= 10
    for value in xs:
        parts.append(f'<text x="{x_of(value):.1f}" y="{TOP + PANEL_H + 15}" text-anchor="middle">{value:g}</text>')
    return parts
