"""Draw the ratios of all kept comparisons with llama-server as one SVG: a dot with its interval per workload."""

from __future__ import annotations

import math
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from benchmarks.engine_report import Report, Row
from benchmarks.engine_workloads import IS_BETTER_HIGH

_LOW, _HIGH = 1 / 32, 4.0  # ratios at the edges; the axis is logarithmic
_TICKS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
_LEFT, _WIDTH, _ROW, _RIGHT = 290, 460, 22, 150
_GOOD, _BAD, _INK = "#2a7f4f", "#b3402e", "#333"


def plot(results: Path, path: Path) -> None:
    """The newest report of each model in `results` becomes a panel of `path`."""
    newest: dict[object, Report] = {}
    for kept in sorted(results.glob("engine-*.json")):  # names end in dates: the last one of a model is the newest
        report = msgspec.json.decode(kept.read_bytes(), type=Report)
        newest[report.model["id"]] = report
    if not newest:
        raise SystemExit(f"There is no result in {results}: run `python -m benchmarks engine` first.")
    parts: list[str] = []
    y = 40
    for report in sorted(newest.values(), key=lambda report: str(report.model["file_bytes"]).zfill(20)):
        parts.append(_text(10, y, f"{report.model['id']} ({report.model['description']})", weight="bold"))
        y += _ROW
        for row in report.rows:
            parts += _row(row, y)
            y += _ROW
        y += _ROW // 2
    grid = [_gridline(tick, y) for tick in _TICKS]
    width, height = _LEFT + _WIDTH + _RIGHT, y + 30
    title = _text(_LEFT, 18, "Keepwarm / llama-server: median ratio, 95 % interval")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([title, *grid, *parts])
        + "\n</svg>\n",
        "utf-8",
    )


def _row(row: Row, y: int) -> list[str]:
    """The figure that the goal is about; a tick where the goal is."""
    colour = _GOOD if row.is_met else _BAD
    better = "more is better" if row.goal.figure in IS_BETTER_HIGH else "less is better"
    ratio, goal = row.ratio, _x(row.goal.ratio)
    return [
        _text(20, y, f"{row.workload}: {row.goal.figure}, {better}"),
        f'<line x1="{goal:.1f}" x2="{goal:.1f}" y1="{y - 11}" y2="{y + 3}" stroke="{_INK}" stroke-width="2"/>',
        f'<line x1="{_x(ratio.low):.1f}" x2="{_x(ratio.high):.1f}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
        'stroke-width="3"/>',
        f'<circle cx="{_x(ratio.median):.1f}" cy="{y - 4}" r="4.5" fill="{colour}"/>',
        _text(_LEFT + _WIDTH + 12, y, f"{ratio.median:.2f} (goal {row.goal.worded()})", colour=colour),
    ]


def _gridline(tick: float, y: int) -> str:
    colour = "#888" if tick == 1 else "#ddd"
    line = f'<line x1="{_x(tick):.1f}" x2="{_x(tick):.1f}" y1="26" y2="{y}" stroke="{colour}"/>'
    return line + _text(round(_x(tick)) - 8, y + 16, f"{tick:g}")


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)
    return _LEFT + _WIDTH * share


def _text(x: int, y: int, text: str, *, colour: str = _INK, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" font-weight="{weight}">{escape(text)}</text>'
