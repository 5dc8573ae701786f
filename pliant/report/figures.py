"""Line charts as plain SVG text: a mean line and a 95 % band per method, nothing to install, nothing to load.

A chart is drawn once and reads well in light and dark: its colours are the CSS variables of
:mod:`pliant.report.style`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from pliant.errors import RecordError
from pliant.report.curves import Curve, stream_curves
from pliant.report.metrics import Metric, format_estimate, metric_info
from pliant.report.scales import spread, task_ticks, value_ticks
from pliant.report.style import CHART_STYLE, COLOUR_STYLE, Style, escape, short, styles_of
from pliant.report.summary import Stream

__all__ = ["Chart", "chart_svg", "figure_svg"]


@dataclass(frozen=True)
class Chart:
    """The size of a chart in pixels and its extras.

    Args:
        width: Width of the drawing.
        height: Height of the drawing.
        names: Whether the methods' names stand at the ends of their lines.
        window: How many tasks at either end are marked as those of the headline; 0 marks none.
        title: A title above the chart, and with it a legend.
    """

    width: int
    height: int
    names: bool = False
    window: int = 0
    title: str = ""


@dataclass(frozen=True)
class _Frame:
    """Where the data area lies, and what lies where in it."""

    left: float
    right: float
    top: float
    bottom: float
    num_tasks: int
    ticks: Sequence[float]

    def x(self, task: float) -> float:
        """Pixel of a task; the first is 1, and of a point that stands for several it is the middle."""
        share = (task - 1) / (self.num_tasks - 1) if self.num_tasks > 1 else 0.5
        return self.left + (self.right - self.left) * share

    def y(self, value: float) -> float:
        """Pixel of a value; values far outside are drawn just outside, where they are clipped."""
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return self.bottom - (self.bottom - self.top) * min(max(share, -0.5), 1.5)


def figure_svg(streams: Sequence[Stream], stream: str, metric: str = "online_accuracy") -> str:
    """One figure as the text of a standalone SVG file, for a README or a paper.

    It has a title and a legend, and follows the reader's choice of light or dark.

    Args:
        streams: From :func:`pliant.report.summarise`.
        stream: The name of one of them.
        metric: The name of a series.

    Raises:
        RecordError: If there is no such stream, or no complete record of it has the series; the message names what
            there is.

    Example:
        >>> from pliant.records import Record, experiment_id
        >>> def run(seed, last):
        ...     config = {"stream": {"name": "digits"}, "methods": [], "num_tasks": 2}
        ...     name = experiment_id(config, "digits", "none")
        ...     return Record(experiment=config, experiment_id=name, seed=seed, series={"online_accuracy": [0.5, last]})
        >>> records = [run(0, 0.25), run(1, 0.75)]
        >>> from pliant.report import figure_svg, summarise
        >>> figure_svg(summarise(records), "digits").startswith("<svg")
        True
    """
    found = next((s for s in streams if s.name == stream), None)
    if found is None:
        names = ", ".join(sorted({s.name for s in streams}))
        raise RecordError(f"there is no stream {stream!r} in these records; there is {names}")
    info = metric_info(metric)
    curves = stream_curves(found, info, styles_of(streams))
    if not curves:
        names = ", ".join(m.name for m in found.metrics) or "nothing"
        raise RecordError(f"no complete record has {metric!r} on {stream!r}; measured there: {names}")
    chart = Chart(960, 460, names=True, window=found.window, title=f"{found.title}: {info.words}")
    opening = f'<style>{COLOUR_STYLE}{CHART_STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    head, body = chart_svg(curves, info, chart).split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg" width="{chart.width}">{opening}{body}\n'


def chart_svg(curves: Sequence[Curve], metric: Metric, chart: Chart) -> str:
    """One chart as an ``<svg>`` element.

    Args:
        curves: What to draw, the first on top, each with at least one finite mean.
        metric: For the numbers and the unit of the axis.
        chart: Size and extras.

    Returns:
        SVG text in which every name is escaped. What lies beyond the axes is clipped; a gap in a line is a task for
        which no seed has a value.
    """
    ticks = value_ticks([curve.points for curve in curves], metric)
    texts = [f"{100 * t:g} %" if metric.percent else f"{t:g}" for t in ticks]
    names = chart.names and len(curves) <= 14
    legend, legend_height = _legend(curves, chart)
    frame = _Frame(
        left=18 + 7 * max(map(len, texts)),
        right=chart.width - (38 + 7.4 * min(26, max(len(c.label) for c in curves)) if names else 16),
        top=12 + legend_height,
        bottom=chart.height - 42,
        num_tasks=max(c.length for c in curves),
        ticks=ticks,
    )
    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" '
        f'aria-label="{escape(_in_words(curves, metric))}" data-left="{frame.left}" data-right="{frame.right}">',
        *legend,
        *_windows(frame, chart.window),
        *_axes(frame, texts),
        # A nested drawing clips without an id, which would have to be unique on a page.
        f'<svg x="0" y="{frame.top - 2}" width="{chart.width}" height="{frame.bottom - frame.top + 4}" '
        f'viewBox="0 {frame.top - 2} {chart.width} {frame.bottom - frame.top + 4}">',
        *(_curve(curve, frame) for curve in reversed(curves)),
        "</svg>",
        *(_end_names(curves, frame) if names else []),
        f'<line class="cursor axis" x1="0" x2="0" y1="{frame.top}" y2="{frame.bottom}" visibility="hidden"/>',
        "</svg>",
    ]
    return "".join(parts)


def _axes(frame: _Frame, texts: Sequence[str]) -> list[str]:
    left, right, bottom = frame.left, frame.right, frame.bottom
    parts = []
    for tick, text in zip(frame.ticks, texts, strict=True):
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for task in task_ticks(frame.num_tasks):
        x = frame.x(task)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{task}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    note = "" if frame.ticks[0] <= 0 else f" (the vertical axis starts at {texts[0]})"
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 36}" text-anchor="middle">task{note}</text>')
    return parts


def _windows(frame: _Frame, window: int) -> list[str]:
    """The tasks that the headline averages, as a wash behind everything."""
    if window < 1 or frame.num_tasks < 3:
        return []
    parts = []
    last = frame.num_tasks - window + 1
    for a, b, text in ((1, window, f"first {window}"), (last, frame.num_tasks, f"last {window}")):
        x, width = frame.x(a), frame.x(b) - frame.x(a)
        parts.append(
            f'<rect class="window" x="{x:.1f}" width="{width:.1f}" y="{frame.top}" '
            f'height="{frame.bottom - frame.top}"/>'
        )
        if width > 40:
            parts.append(f'<text x="{x + width / 2:.1f}" y="{frame.bottom - 7}" text-anchor="middle">{text}</text>')
    return parts


def _curve(curve: Curve, frame: _Frame) -> str:
    parts = []
    numbers = range(1, len(curve.points) + 1)
    for run in _runs(numbers, lambda n: math.isfinite(curve.points[n - 1].half_width)):
        upper = [f"{frame.x(curve.task(n)):.1f},{frame.y(curve.points[n - 1].high):.1f}" for n in run]
        lower = [f"{frame.x(curve.task(n)):.1f},{frame.y(curve.points[n - 1].low):.1f}" for n in reversed(run)]
        # A band over a single task has no width: it is drawn as an error bar.
        shape = (
            f'<polygon class="band" fill="{curve.style.css}" points="{" ".join(upper + lower)}"/>'
            if len(run) > 1
            else f'<polyline class="line" points="{upper[0]} {lower[0]}"/>'
        )
        parts.append(shape)
    for run in _runs(numbers, lambda n: curve.points[n - 1].num > 0):
        points = [f"{frame.x(curve.task(n)):.1f},{frame.y(curve.points[n - 1].mean):.1f}" for n in run]
        if len(run) > 1:
            parts.append(f'<polyline class="line"{curve.style.dashes} points="{" ".join(points)}"/>')
        else:
            x, y = points[0].split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{curve.style.css}" stroke="none"/>')
    return f'<g class="curve" data-label="{escape(curve.label)}" stroke="{curve.style.css}">{"".join(parts)}</g>'


def _stroke(style: Style, x1: float, x2: float, y: float) -> str:
    """A short piece of a method's line."""
    return f'<polyline class="line"{style.dashes} stroke="{style.css}" points="{x1:.0f},{y:.1f} {x2:.0f},{y:.1f}"/>'


def _runs(tasks: Sequence[int], keep: Callable[[int], bool]) -> list[list[int]]:
    """Stretches of consecutive tasks that are all kept."""
    return [list(group) for kept, group in groupby(tasks, keep) if kept]


def _end_names(curves: Sequence[Curve], frame: _Frame) -> list[str]:
    """The names at the ends of the lines, moved apart where the lines end close together."""
    ends = []
    for curve in curves:
        last = max(n for n, p in enumerate(curve.points, start=1) if p.num)
        y = min(max(frame.y(curve.points[last - 1].mean), frame.top), frame.bottom)
        ends.append((y, frame.x(curve.task(last)), curve))
    ends.sort(key=lambda end: end[0])
    places = spread([y for y, _, _ in ends], frame.top, frame.bottom, gap=17.0)
    parts = []
    for (y, x, curve), place in zip(ends, places, strict=True):
        points = f"{x + 2:.1f},{y:.1f} {frame.right + 10:.1f},{place:.1f}"
        key = _stroke(curve.style, frame.right + 12, frame.right + 26, place)
        parts.append(
            f'<g data-label="{escape(curve.label)}"><polyline class="leader" points="{points}"/>'
            f'{key}<text class="name" x="{frame.right + 31}" y="{place + 4:.1f}">'
            f"{escape(short(curve.label, 26))}</text></g>"
        )
    return parts


def _legend(curves: Sequence[Curve], chart: Chart) -> tuple[list[str], int]:
    """Title and legend of a standalone figure, and the height that they take."""
    if not chart.title:
        return [], 0
    parts = [f'<text class="title" x="16" y="28">{escape(chart.title)}</text>']
    x, y = 16.0, 52
    for curve in curves:
        width = 36 + 7 * len(curve.label)
        if x > 16 and x + width > chart.width - 16:
            x, y = 16.0, y + 20
        key = _stroke(curve.style, x, x + 22, y - 4)
        parts.append(f'{key}<text class="name" x="{x + 28:.0f}" y="{y}">{escape(curve.label)}</text>')
        x += width + 14
    return parts, y + 6


def _in_words(curves: Sequence[Curve], metric: Metric) -> str:
    """What the chart shows, for those who cannot see it."""
    unit = " %" if metric.percent else ""
    ends = []
    for curve in curves:
        seen = [p for p in curve.points if p.num]
        first, last = (format_estimate(p, metric) for p in (seen[0], seen[-1]))
        ends.append(f"{curve.label} from {first} to {last}{unit}")
    return f"{metric.title} over tasks: {'; '.join(ends)}."
