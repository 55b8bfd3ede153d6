"""Draw the newest kept result of the queue benchmark as an SVG: jobs per second and CPU time per job, side by side."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from benchmarks.queue_report import Report, Row
from benchmarks.spread import Estimate

_LEFT, _WIDTH, _ROW, _GAP = 90, 300, 26, 120
_OURS, _THEIRS, _INK = "#2a7f4f", "#8a97a6", "#333"


def plot(results: Path, path: Path) -> None:
    kept = sorted(results.glob("queue-*.json"))  # names end in dates
    if not kept:
        raise SystemExit(f"There is no result in {results}: run `python -m benchmarks queue` first.")
    report = msgspec.json.decode(kept[-1].read_bytes(), type=Report)
    fastest = max(row.jobs_per_s.high for row in report.rows)
    dearest = max(row.cpu_us.high for row in report.rows)
    right = _LEFT + _WIDTH + _GAP
    parts = [
        _text(_LEFT, 20, "jobs per second"),
        _text(right, 20, "CPU µs per job, all processes"),
        *(
            part
            for index, row in enumerate(report.rows)
            for part in _row(row, 34 + index * _ROW, fastest, dearest, right)
        ),
    ]
    height = 34 + len(report.rows) * _ROW + 30
    note = f"{report.in_flight} in flight, {report.payload_bytes} bytes, {report.rounds} rounds of {report.jobs} jobs"
    parts.append(_text(_LEFT, height - 12, f"{note}; the others have no HTTP, no stream, no resume"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + _WIDTH + _GAP}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n",
        "utf-8",
    )


def _row(row: Row, y: int, fastest: float, dearest: float, right: int) -> list[str]:
    colour = _OURS if row.keepwarm_ratio is None else _THEIRS
    return [
        _text(10, y + 14, row.name),
        *_bar(_LEFT, y, row.jobs_per_s, fastest, colour),
        *_bar(right, y, row.cpu_us, dearest, colour),
    ]


def _bar(x: int, y: int, value: Estimate, largest: float, colour: str) -> list[str]:
    """The median, and a line from one end of its interval to the other."""
    scale = _WIDTH / largest
    middle = y + 9
    return [
        f'<rect x="{x}" y="{y}" width="{value.median * scale:.1f}" height="18" fill="{colour}"/>',
        f'<line x1="{x + value.low * scale:.1f}" x2="{x + value.high * scale:.1f}" y1="{middle}" y2="{middle}" '
        f'stroke="{_INK}"/>',
        _text(x + round(value.high * scale) + 6, y + 14, f"{value.median:.0f}"),
    ]


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{_INK}">{escape(text)}</text>'
