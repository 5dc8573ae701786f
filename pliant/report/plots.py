"""Charts whose axes are not tasks: intervals side by side, curves, points in a plane, ranks. Plain SVG text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pliant.intervals import Estimate
from pliant.report.scales import name_places, nice_ticks
from pliant.report.style import Style, escape, short

__all__ = ["Axis", "curve_chart", "interval_chart", "point_chart", "rank_chart"]


@dataclass(frozen=True)
class Axis:
    """A numeric axis: what stands beside it, and how values are turned into what is shown.

    Args:
        title: What it shows, with the unit.
        factor: What values are multiplied by: 100 for percent.
        unit: What follows a number.
    """

    title: str
    factor: float = 1.0
    unit: str = ""

    def text(self, value: float) -> str:
        """A number on this axis."""
        shown = self.factor * value
        return f"{shown:.4g}{self.unit}".replace("-", "−")

    def ticks(self, values: Sequence[float], num: int = 5) -> list[float]:
        """Round numbers around the finite ones of these."""
        finite = [self.factor * v for v in values if math.isfinite(v)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        return [tick / self.factor for tick in nice_ticks(low, high, num)]


@dataclass(frozen=True)
class _Plane:
    """The data area in pixels and what lies where in it."""

    left: float
    right: float
    top: float
    bottom: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        """Pixel of a value; outside of the area it stays at its edge."""
        return _place(value, self.x_ticks, self.left, self.right)

    def y(self, value: float) -> float:
        """Pixel of a value, likewise."""
        return _place(value, self.y_ticks, self.bottom, self.top)


def _place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return start + (end - start) * min(max(share, 0.0), 1.0)


def interval_chart(
    rows: Sequence[tuple[str, Estimate, Style]], axis: Axis, *, reference: float = 0.0, width: int = 520
) -> str:
    """One line per method: a dot, its 95 % interval, and a line at the value that would mean no difference.

    Args:
        rows: Label, estimate and style; from top to bottom.
        axis: Of the estimates.
        reference: Where the line is.
        width: Of the drawing in pixels.
    """
    height = 24 * len(rows) + 44
    bounds = [b for _, e, _ in rows for b in (e.mean, e.low, e.high)]
    longest = max((len(label) for label, _, _ in rows), default=0)
    left = 22 + 7.4 * min(24, longest)
    plane = _Plane(left, width - 16, 6, height - 38, axis.ticks([*bounds, reference], 4), [0.0, 1.0])
    parts = [_open(width, height, f"{axis.title}: {_words(rows, axis)}"), *_x_axis(plane, axis)]
    x = plane.x(reference)
    parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{plane.top}" y2="{plane.bottom}"/>')
    for i, (label, estimate, style) in enumerate(rows):
        y = plane.top + 24 * i + 14
        parts.append(
            f'<g data-label="{escape(label)}" stroke="{style.css}"><title>{escape(_title(label, estimate, axis))}'
        )
        parts.append(f'</title><text class="name" x="{left - 10}" y="{y + 4}" text-anchor="end">')
        parts.append(f"{escape(short(label, 24))}</text>")
        if math.isfinite(estimate.half_width):
            parts.append(f'<line x1="{plane.x(estimate.low):.1f}" x2="{plane.x(estimate.high):.1f}" y1="{y}" y2="{y}" ')
            parts.append('stroke-width="2.5"/>')
        if math.isfinite(estimate.mean):
            parts.append(
                f'<circle cx="{plane.x(estimate.mean):.1f}" cy="{y}" r="4.5" fill="{style.css}" stroke="none"/>'
            )
        else:
            parts.append(f'<text x="{plane.left + 6}" y="{y + 4}" stroke="none">no number</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def curve_chart(
    curves: Sequence[tuple[str, Sequence[float], Sequence[Estimate], Style]],
    x_axis: Axis,
    y_axis: Axis,
    *,
    steps: bool = False,
    width: int = 520,
    height: int = 300,
) -> str:
    """Lines with bands over a numeric axis.

    Args:
        curves: Label, positions, as many estimates, and style; the first on top.
        x_axis: Of the positions.
        y_axis: Of the estimates.
        steps: Whether positions are whole numbers, each of which is drawn as a dot.
        width: Of the drawing in pixels.
        height: Likewise.
    """
    xs = [x for _, positions, _, _ in curves for x in positions]
    ys = [b for _, _, points, _ in curves for e in points for b in (e.mean, e.low, e.high)]
    x_ticks = x_axis.ticks(xs)
    if steps:
        step = max(1, round(max(xs) / 8))
        x_ticks = [1.0, *(float(x) for x in range(1 + step, int(max(xs)) + 1, step))]
        x_ticks = x_ticks if x_ticks[-1] >= max(xs) else [*x_ticks, float(max(xs))]
        x_ticks = x_ticks if len(x_ticks) > 1 else [1.0, 2.0]
    plane = _plane(x_ticks, y_axis.ticks(ys), y_axis, width, height)
    parts = [
        _open(width, height, f"{y_axis.title} by {x_axis.title}"),
        *_x_axis(plane, x_axis),
        *_y_axis(plane, y_axis),
    ]
    for label, positions, points, style in reversed(curves):
        places = [(plane.x(x), e) for x, e in zip(positions, points, strict=True) if math.isfinite(e.mean)]
        if not places:
            continue
        parts.append(f'<g data-label="{escape(label)}" stroke="{style.css}"><title>{escape(label)}</title>')
        banded = [(x, e) for x, e in places if math.isfinite(e.half_width)]
        if len(banded) > 1:
            edge = [f"{x:.1f},{plane.y(e.high):.1f}" for x, e in banded]
            edge += [f"{x:.1f},{plane.y(e.low):.1f}" for x, e in reversed(banded)]
            parts.append(f'<polygon class="band" fill="{style.css}" points="{" ".join(edge)}"/>')
        line = " ".join(f"{x:.1f},{plane.y(e.mean):.1f}" for x, e in places)
        parts.append(f'<polyline class="line"{style.dashes} points="{line}"/>')
        if steps or len(places) == 1:
            for x, e in places:
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{plane.y(e.mean):.1f}" r="3" fill="{style.css}" stroke="none"/>'
                )
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def point_chart(
    points: Sequence[tuple[str, Estimate, Estimate, Style]], x_axis: Axis, y_axis: Axis, *, width: int = 520
) -> str:
    """One point per method with an interval in both directions, and its name beside it.

    Args:
        points: Label, position along either axis, and style.
        x_axis: Of the first estimates.
        y_axis: Of the second.
        width: Of the drawing in pixels.
    """
    height = 340
    kept = [point for point in points if math.isfinite(point[1].mean) and math.isfinite(point[2].mean)]
    x_ticks = x_axis.ticks([b for _, e, _, _ in kept for b in (e.mean, e.low, e.high)])
    y_ticks = y_axis.ticks([b for _, _, e, _ in kept for b in (e.mean, e.low, e.high)])
    plane = _plane(x_ticks, y_ticks, y_axis, width, height)
    parts = [
        _open(width, height, f"{y_axis.title} by {x_axis.title}"),
        *_x_axis(plane, x_axis),
        *_y_axis(plane, y_axis),
    ]
    places = [(plane.x(x.mean), plane.y(y.mean)) for _, x, y, _ in kept]
    box = (plane.left, plane.right, plane.top)
    names = name_places([short(label, 24) for label, _, _, _ in kept], places, box)
    for label, x, y, style in kept:
        cx, cy = plane.x(x.mean), plane.y(y.mean)
        words = f"{label}: {x_axis.text(x.mean)}, {y_axis.text(y.mean)}"
        parts.append(f'<g data-label="{escape(label)}" stroke="{style.css}"><title>{escape(words)}</title>')
        if math.isfinite(x.half_width):
            parts.append(f'<line x1="{plane.x(x.low):.1f}" x2="{plane.x(x.high):.1f}" y1="{cy:.1f}" y2="{cy:.1f}"/>')
        if math.isfinite(y.half_width):
            parts.append(f'<line x1="{cx:.1f}" x2="{cx:.1f}" y1="{plane.y(y.low):.1f}" y2="{plane.y(y.high):.1f}"/>')
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="5" fill="{style.css}" stroke="none"/>')
        parts.append("</g>")
    # Names come last, so that no interval of another crosses them.
    for (label, _, _, _), (at_x, at_y, anchor) in zip(kept, names, strict=True):
        place = f'x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}"'
        parts.append(f'<g data-label="{escape(label)}"><text class="name" {place}>')
        parts.append(f"{escape(short(label, 24))}</text></g>")
    return "".join([*parts, "</svg>"])


def rank_chart(
    left: Mapping[str, float], right: Mapping[str, float], titles: tuple[str, str], styles: Mapping[str, Style]
) -> str:
    """Ranks on two sides, joined by lines: where lines cross, the order differs.

    Args:
        left: Name to rank, 1 on top.
        right: The same names.
        titles: Of the sides.
        styles: Name to style; names without one are drawn in the ink of axes.
    """
    width, height = 520, 26 * len(left) + 46
    gap, margin = 26.0, 28 + 7.4 * min(22, max(map(len, left)))
    a, b = margin + 12, width - margin - 12
    parts = [_open(width, height, f"Ranks: {titles[0]} and {titles[1]}")]
    for x, anchor, title in ((2.0, "start", titles[0]), (width - 2.0, "end", titles[1])):
        parts.append(f'<text x="{x}" y="14" text-anchor="{anchor}">{escape(short(title, 30))}</text>')
    sides = [_rank_places(side, gap) for side in (left, right)]
    for name in left:
        y1, y2 = (side[name] for side in sides)
        colour = styles[name].css if name in styles else "var(--axis)"
        words = f"{name}: {left[name]:g}, then {right[name]:g}"
        parts.append(f'<g data-label="{escape(name)}" stroke="{colour}"><title>{escape(words)}</title>')
        parts.append(f'<line x1="{a}" x2="{b}" y1="{y1:.1f}" y2="{y2:.1f}" stroke-width="2.2"/>')
        for x, y, anchor, shift, rank in ((a, y1, "end", -10, left[name]), (b, y2, "start", 10, right[name])):
            parts.append(f'<circle cx="{x}" cy="{y:.1f}" r="4.5" fill="{colour}" stroke="none"/>')
            text = f"{rank:g}. {short(name, 22)}"
            parts.append(f'<text class="name" x="{x + shift}" y="{y + 4:.1f}" text-anchor="{anchor}">')
            parts.append(f"{escape(text)}</text>")
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _rank_places(ranks: Mapping[str, float], gap: float) -> dict[str, float]:
    """Names by rank; those that share one stand below each other."""
    order = sorted(ranks, key=lambda name: ranks[name])
    return {name: 36 + gap * i for i, name in enumerate(order)}


def _plane(x_ticks: Sequence[float], y_ticks: Sequence[float], y_axis: Axis, width: int, height: int) -> _Plane:
    left = 30 + 7 * max(len(y_axis.text(tick)) for tick in y_ticks)
    return _Plane(left, width - 18, 12, height - 46, x_ticks, y_ticks)


def _open(width: int, height: int, words: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}">'


def _x_axis(plane: _Plane, axis: Axis) -> list[str]:
    parts = []
    for tick in plane.x_ticks:
        x = plane.x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{plane.top}" y2="{plane.bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{plane.bottom + 16}" text-anchor="middle">{escape(axis.text(tick))}</text>')
    middle = (plane.left + plane.right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{plane.bottom + 33}" text-anchor="middle">{escape(axis.title)}</text>')
    return parts


def _y_axis(plane: _Plane, axis: Axis) -> list[str]:
    parts = []
    for tick in plane.y_ticks:
        y = plane.y(tick)
        parts.append(f'<line class="grid" x1="{plane.left}" x2="{plane.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{plane.left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(axis.text(tick))}</text>')
    middle = (plane.top + plane.bottom) / 2
    parts.append(
        f'<text transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(axis.title)}</text>'
    )
    return parts


def _title(label: str, estimate: Estimate, axis: Axis) -> str:
    if not math.isfinite(estimate.mean):
        return f"{label}: no number"
    if not math.isfinite(estimate.half_width):
        return f"{label}: {axis.text(estimate.mean)}, no interval"
    return f"{label}: {axis.text(estimate.mean)} [{axis.text(estimate.low)}, {axis.text(estimate.high)}]"


def _words(rows: Sequence[tuple[str, Estimate, Style]], axis: Axis) -> str:
    return "; ".join(_title(label, estimate, axis) for label, estimate, _ in rows) + "."
