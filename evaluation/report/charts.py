"""Charts as inline SVG: intervals around differences, and a figure by the value of a setting.

Colours and lettering come from the page's style sheet (`page.css`), so that they fit light and
dark. Every number in a chart is also in a table.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, LABELS, ROW, PAD = 800, 310, 26, 26


@dataclass(frozen=True)
class Bar:
    """A difference: its value, its interval, and its kind (better, worse, none) for the colour."""

    label: str
    value: float
    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Dot:
    """A figure at the value of a setting, with its interval."""

    x: float
    value: float
    low: float
    high: float


def forest(bars: Sequence[Bar], axis: str, title: str) -> str:
    """Differences one below another, with the line of no difference. Undefined bars are left out;
    "" if none is left."""
    shown = [bar for bar in bars if not math.isnan(bar.value + bar.low + bar.high)]
    if not shown:
        return ""
    low, high = min(0.0, *(bar.low for bar in shown)), max(0.0, *(bar.high for bar in shown))
    marks = ticks(low, high)
    low, high = min(low, marks[0]), max(high, marks[-1])
    left, right, bottom = LABELS, WIDTH - PAD, ROW * len(shown) + 8

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [_grid(at(mark), 4, bottom, mark == 0) for mark in marks]
    parts += [_text(at(mark), bottom + 16, _number(mark), "middle") for mark in marks]
    parts.append(_text((left + right) / 2, bottom + 34, axis, "middle"))
    for i, bar in enumerate(shown):
        y = ROW * i + ROW / 2 + 4
        ends = f'x1="{at(bar.low):.1f}" x2="{at(bar.high):.1f}" y1="{y}" y2="{y}"'
        parts.append(_text(left - 10, y + 4, _fit(bar.label, 40), "end"))
        parts.append(f'<line class="{bar.kind}" {ends} stroke-width="3"/>')
        parts.append(f'<circle class="{bar.kind}" cx="{at(bar.value):.1f}" cy="{y}" r="5"/>')
    return _svg(parts, bottom + 44, title)


def curve(dots: Sequence[Dot], base: Dot | None, axes: tuple[str, str], title: str) -> str:
    """A figure by a setting with its intervals, and the baseline's as a band across. "" with fewer
    than two defined dots."""
    shown = [dot for dot in dots if not math.isnan(dot.value + dot.low + dot.high)]
    if len(shown) < 2:
        return ""
    height, left, right, top, bottom = 300, 80, WIDTH - PAD, 14, 244
    bands = [*shown, base] if base is not None and not math.isnan(base.low) else list(shown)
    marks = ticks(min(dot.low for dot in bands), max(dot.high for dot in bands))
    low, high = min(marks[0], *(dot.low for dot in bands)), max(marks[-1], *(d.high for d in bands))
    first, last = shown[0].x, shown[-1].x
    inset = 30

    def x_at(value: float) -> float:
        return left + inset + (value - first) / (last - first) * (right - left - 2 * inset)

    def y_at(value: float) -> float:
        return bottom - (value - low) / ((high - low) or 1) * (bottom - top)

    parts = []
    for mark in marks:
        y = y_at(mark)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, _number(mark), "end"))
    if base is not None and not math.isnan(base.low):
        up, down = y_at(base.high), y_at(base.low)
        box = f'x="{left}" width="{right - left}" y="{up:.1f}" height="{down - up:.1f}"'
        parts.append(f'<rect class="band" {box}/>')
        y = y_at(base.value)
        parts.append(f'<line class="base" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    line = " ".join(f"{x_at(dot.x):.1f},{y_at(dot.value):.1f}" for dot in shown)
    parts.append(f'<polyline class="curve" points="{line}"/>')
    for dot in shown:
        x = f"{x_at(dot.x):.1f}"
        ends = f'y1="{y_at(dot.low):.1f}" y2="{y_at(dot.high):.1f}"'
        parts.append(f'<line class="curve" x1="{x}" x2="{x}" {ends}/>')
        parts.append(f'<circle class="dot" cx="{x}" cy="{y_at(dot.value):.1f}" r="4.5"/>')
        parts.append(_text(x_at(dot.x), bottom + 20, _number(dot.x), "middle"))
    parts.append(_text((left + right) / 2, bottom + 42, axes[0], "middle"))
    parts.append(_text(left - 60, top - 2, axes[1], "start"))
    return _svg(parts, height, title)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = high - low or abs(high) or 1.0
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, max(last, first + 1) + 1)]


def _grid(x: float, top: float, bottom: float, zero: bool) -> str:
    kind = "zero" if zero else "grid"
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    name = html.escape(title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _fit(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
