"""What a chart over tasks is drawn from: an estimate per task, or per few tasks of a long stream."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pliant.intervals import Estimate, band
from pliant.report.metrics import Metric
from pliant.report.style import Style, clean
from pliant.report.summary import Stream
from pliant.statistics import average

__all__ = ["MAX_POINTS", "Curve", "chart_data", "stream_curves"]

MAX_POINTS = 250
"""More points than that are not told apart in a figure, and make a page heavy."""


@dataclass(frozen=True)
class Curve:
    """One method in one chart.

    Args:
        label: Its name.
        points: An estimate per point.
        style: How it is drawn.
        step: How many tasks each point is the mean over; 1 where all of them are drawn.
        num_tasks: How many tasks there are, where a point stands for several.
    """

    label: str
    points: Sequence[Estimate]
    style: Style
    step: int = 1
    num_tasks: int = 0

    @property
    def length(self) -> int:
        """How many tasks it covers."""
        return self.num_tasks or len(self.points)

    def task(self, point: int) -> float:
        """The middle of the tasks that a point stands for; points and tasks count from 1."""
        return ((point - 1) * self.step + 1 + min(point * self.step, self.length)) / 2


def stream_curves(
    stream: Stream, metric: Metric, styles: dict[str, Style], max_points: int = MAX_POINTS
) -> list[Curve]:
    """The curves of one metric, over each method's complete seeds; a method that has none gets no curve.

    Of long streams, each point is the mean of each seed over as many tasks as it takes to have ``max_points`` at most;
    the band is that of these means.
    """
    curves = []
    step = max(1, -(-stream.num_tasks // max_points))
    for method in stream.methods:
        series = list(method.curves(metric.name).values())
        length = len(series[0]) if series else 0
        thinned = [[average(s[i : i + step]) for i in range(0, length, step)] for s in series] if step > 1 else series
        points = band(thinned) if series else []
        if any(point.num for point in points):
            curves.append(Curve(method.label, points, styles[method.label], step, length))
    return curves


def chart_data(curves: Sequence[Curve], metric: Metric) -> str:
    """What the page shows under the pointer, as JSON that cannot end the script element it stands in.

    Numbers are as they are shown: percent to one decimal, others to three digits; ``null`` where there is none.
    """
    rows = [
        {
            "label": clean(curve.label),
            "colour": curve.style.css,
            "mean": [_shown(p.mean, metric) for p in curve.points],
            "half": [_shown(p.half_width, metric) for p in curve.points],
            "seeds": {i: _seeds_left(p) for i, p in enumerate(curve.points) if p.num_excluded and p.num},
        }
        for curve in curves
    ]
    data = {
        "step": max(curve.step for curve in curves),
        "tasks": max(curve.length for curve in curves),
        "percent": metric.percent,
        "rows": rows,
    }
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: float, metric: Metric) -> float | None:
    if not math.isfinite(value):
        return None
    return round(100 * value, 1) if metric.percent else float(f"{value:.3g}")


def _seeds_left(point: Estimate) -> str:
    """Where a mean speaks for fewer seeds than ran, it says so."""
    return f"{point.num} of {point.num + point.num_excluded} seeds"
