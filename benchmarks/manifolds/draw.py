"""Figures of the studies as plain SVG text: panels of lines with bands, and rows of means with whiskers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pliant.intervals import Estimate
from pliant.report.scales import nice_ticks
from pliant.report.style import CHART_STYLE, COLOUR_STYLE, escape

__all__ = ["Line", "Panel", "Row", "panels", "rows"]

_DASHES = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"', ' stroke-dasharray="8 3 2 3"')
_WIDTH, _MARGIN, _HEAD = 960, 16, 58


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: What it is; lines of one label share a place in the legend.
        colour: Number of a colour, 0 to 7.
        x: Places.
        points: Estimates there; what is not finite is a gap.
        dash: Number of its dashes, 0 to 3.
    """

    label: str
    colour: int
    x: Sequence[float]
    points: Sequence[Estimate]
    dash: int = 0


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        x_title: Below it.
        lines: Its curves.
        log_x: Whether the horizontal axis is logarithmic; places must be above zero.
        log_y: The same of the vertical one; values at or below zero are drawn at the lower edge.
        limits: Of the vertical axis; ``None``: what the lines need.
    """

    title: str
    x_title: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One row of means: a name, and marks of several colours."""

    label: str
    marks: Sequence[tuple[int, Estimate]]
    strong: bool = False


def panels(title: str, items: Sequence[Panel], columns: int, height: int = 210) -> str:
    """A figure of several panels with one legend.

    Args:
        title: Of the figure.
        items: The panels, row by row.
        columns: How many stand side by side.
        height: Of each panel's data area and labels, in pixels.
    """
    legend, top = _legend({line.label: line for item in items for line in item.lines})
    count = -(-len(items) // columns)
    total = top + count * (height + 24)
    width = (_WIDTH - _MARGIN) / columns
    body = [
        _panel(item, _MARGIN + width * (place % columns), top + (height + 24) * (place // columns), width - 14, height)
        for place, item in enumerate(items)
    ]
    return _figure(title, total, [*legend, *body])


def rows(
    title: str,
    items: Sequence[Row],
    legend: Sequence[tuple[int, str]],
    x_title: str,
    *,
    zero: float = 0.0,
    limits: tuple[float, float] | None = None,
    left: int = 330,
) -> str:
    """A figure of means with whiskers, one row for each name, and a line where nothing is.

    Args:
        title: Of the figure.
        items: The rows, from above.
        legend: Colours and what they mean.
        x_title: Of the axis.
        zero: Where the line of reference is.
        limits: Of the axis; ``None``: what the means and whiskers need.
        left: Room for the names, in pixels.
    """
    known = {label: Line(label, colour, [], []) for colour, label in legend}
    keys, top = _legend(known, dots=True)
    found = [e for row in items for _, e in row.marks if math.isfinite(e.mean)]
    bounds = [v for e in found for v in (e.mean, e.low, e.high) if math.isfinite(v)]
    low, high = limits or (min([zero, *bounds]), max([zero, *bounds]))
    ticks = nice_ticks(low, high, 6)
    step = 24
    bottom = top + step * len(items) + 6

    def x(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return round(left + (_WIDTH - left - 30) * min(1.0, max(0.0, share)), 1)

    parts = [*keys]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 17}" text-anchor="middle">{_text(tick)}</text>')
    parts.append(f'<line class="axis" x1="{x(zero)}" x2="{x(zero)}" y1="{top}" y2="{bottom}"/>')
    parts.append(f'<text x="{(left + _WIDTH) / 2:.0f}" y="{bottom + 36}" text-anchor="middle">{escape(x_title)}</text>')
    for place, row in enumerate(items):
        y = top + step * place + step / 2 + 3
        kind = ' class="name"' if row.strong else ""
        parts.append(f'<text{kind} x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(row.label)}</text>')
        for number, (colour, e) in enumerate(row.marks):
            if not math.isfinite(e.mean):
                continue
            at = y + (number - (len(row.marks) - 1) / 2) * min(6.0, 16 / max(1, len(row.marks)))
            if math.isfinite(e.low):
                parts.append(
                    f'<line x1="{x(e.low)}" x2="{x(e.high)}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--c{colour})" '
                    'stroke-width="1.6"/>'
                )
            parts.append(f'<circle cx="{x(e.mean)}" cy="{at:.1f}" r="3.2" fill="var(--c{colour})"/>')
    return _figure(title, bottom + 48, parts)


def _figure(title: str, height: float, body: Sequence[str]) -> str:
    head = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" '
        f'role="img" aria-label="{escape(title)}">'
    )
    style = f'<style>{COLOUR_STYLE}{CHART_STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    lines = [head, style, f'<text class="title" x="{_MARGIN}" y="28">{escape(title)}</text>', *body, "</svg>"]
    return "\n".join(lines) + "\n"


def _legend(known: dict[str, Line], dots: bool = False) -> tuple[list[str], float]:
    parts, x, y = [], float(_MARGIN), 50.0
    for label, line in known.items():
        width = 36 + 6.6 * len(label)
        if x > _MARGIN and x + width > _WIDTH - _MARGIN:
            x, y = float(_MARGIN), y + 19
        colour = f"var(--c{line.colour})"
        if dots:
            parts.append(f'<circle cx="{x + 11:.0f}" cy="{y - 4:.0f}" r="4" fill="{colour}"/>')
        else:
            points = f"{x:.0f},{y - 4:.0f} {x + 22:.0f},{y - 4:.0f}"
            parts.append(f'<polyline class="line"{_DASHES[line.dash]} stroke="{colour}" points="{points}"/>')
        parts.append(f'<text class="name" x="{x + 28:.0f}" y="{y:.0f}">{escape(label)}</text>')
        x += width + 12
    return parts, y + 14


def _text(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten round some values, at most seven of them."""
    low, high = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    step = max(1, -(-(high - low) // 6))
    return [10.0**power for power in range(low, max(high, low + 1) + step, step)]


def _panel(item: Panel, left: float, top: float, width: float, height: float) -> str:
    places = [x for line in item.lines for x, e in zip(line.x, line.points, strict=True) if math.isfinite(e.mean)]
    means = [e.mean for line in item.lines for e in line.points if math.isfinite(e.mean)]
    if not places:
        return f'<text x="{left:.0f}" y="{top + 20:.0f}">{escape(item.title)}: nothing measured</text>'
    positive = [value for value in means if value > 0]
    if item.limits is not None:
        low, high = item.limits
        y_ticks = _decades([low, high]) if item.log_y else nice_ticks(low, high, 4)
    elif item.log_y:
        y_ticks = _decades(positive or [1.0])
    else:
        y_ticks = nice_ticks(min(means), max(means), 4)
    x_ticks = _decades(places) if item.log_x else nice_ticks(min(places), max(places), 4)
    x_low, x_high = (min(places), max(places)) if len(set(places)) > 1 else (x_ticks[0], x_ticks[-1])
    x0, x1 = left + 14 + 6.6 * max(len(_text(t)) for t in y_ticks), left + width
    y0, y1 = top + 22, top + height - 38

    def scaled(value: float, low: float, high: float, log: bool) -> float:
        if log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def x(value: float) -> float:
        return round(x0 + (x1 - x0) * scaled(value, x_low, x_high, item.log_x), 1)

    def y(value: float) -> float:
        return round(y1 - (y1 - y0) * scaled(value, y_ticks[0], y_ticks[-1], item.log_y), 1)

    parts = [f'<text class="name" x="{x0:.1f}" y="{top + 12:.1f}">{escape(item.title)}</text>']
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{x0:.1f}" x2="{x1:.1f}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y(tick) + 4}" text-anchor="end">{_text(tick)}</text>')
    for tick in x_ticks:
        if x_low * (1 - 1e-9) <= tick <= x_high * (1 + 1e-9):
            parts.append(f'<text x="{x(tick)}" y="{y1 + 16:.1f}" text-anchor="middle">{_text(tick)}</text>')
    parts.append(f'<line class="axis" x1="{x0:.1f}" x2="{x1:.1f}" y1="{y1:.1f}" y2="{y1:.1f}"/>')
    parts.append(f'<text x="{(x0 + x1) / 2:.1f}" y="{y1 + 32:.1f}" text-anchor="middle">{escape(item.x_title)}</text>')
    for line in item.lines:
        known = [(x(p), e) for p, e in zip(line.x, line.points, strict=True) if math.isfinite(e.mean)]
        colour = f"var(--c{line.colour})"
        banded = [(p, e) for p, e in known if math.isfinite(e.low)]
        if len(banded) > 1:
            outline = [f"{p},{y(e.high)}" for p, e in banded] + [f"{p},{y(e.low)}" for p, e in reversed(banded)]
            parts.append(f'<polygon class="band" fill="{colour}" points="{" ".join(outline)}"/>')
        points = " ".join(f"{p},{y(e.mean)}" for p, e in known)
        parts.append(f'<polyline class="line"{_DASHES[line.dash]} stroke="{colour}" points="{points}"/>')
    return "\n".join(parts)
