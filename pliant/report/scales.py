"""Round numbers for axes, and places for names that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pliant.intervals import Estimate
from pliant.report.metrics import Metric

__all__ = ["name_places", "nice_ticks", "spread", "task_ticks", "value_ticks"]

_TINY = 1e-290  # below it, numbers lose the digits that round ticks are made of


def nice_ticks(low: float, high: float, num: int = 5) -> list[float]:
    """About ``num`` round numbers from the one at or below ``low`` to the one at or above ``high``.

    Example:
        >>> nice_ticks(0, 0.47)
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
        >>> nice_ticks(3, 3)                                     # a constant still gets an axis around it
        [2.0, 2.5, 3.0, 3.5, 4.0]
    """
    if not high - low > max(1e-9 * max(abs(low), abs(high)), _TINY):
        low, high = (low - abs(low) / 3, high + abs(high) / 3) if abs(low) > _TINY else (0.0, 1.0)
    raw = (high - low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def value_ticks(curves: Iterable[Sequence[Estimate]], metric: Metric) -> list[float]:
    """The ticks of the vertical axis: from 0, unless a curve goes below, or all accuracies stay high.

    An accuracy's axis ends at 100 %. Where all methods stay above 60 %, small differences are the point: the axis then
    starts higher, and the chart says so.
    """
    points = [point for curve in curves for point in curve if point.num]
    means = [p.mean for p in points]
    bounds = [b for p in points for b in (p.low, p.high) if math.isfinite(b)]
    low, high = min(means), max(means)
    if metric.full_axis:
        return nice_ticks(min(low, *bounds, 1.0) if low > 0.6 else 0.0, 1.0)
    # The bands are shown whole unless few seeds make them so wide that the lines would be flattened.
    slack = 0.5 * (high - min(low, 0.0))
    low, high = max(min([low, *bounds]), low - slack), min(max([high, *bounds]), high + slack)
    if min(means) >= 0:
        low = 0.0
    if metric.percent and low == 0 and max(means) <= 1:
        high = min(max(high, 0.05), 1.0)
    return nice_ticks(low, high, 4)


def task_ticks(num_tasks: int) -> list[int]:
    """The first task, and round numbers up to the last."""
    if num_tasks == 1:
        return [1]
    ticks = nice_ticks(0, num_tasks, 6)
    step = max(1, round(ticks[1] - ticks[0]))
    return [1, *(task for task in range(step, num_tasks + 1, step) if task > 1 and (task >= 1 + step / 2))]


def spread(wanted: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Sorted places, moved as little as possible to lie ``gap`` apart and between the bounds.

    Example:
        >>> spread([10.0, 50.0, 52.0], 0.0, 100.0, gap=10.0)
        [10.0, 46.0, 56.0]
        >>> spread([99.0, 99.0], 0.0, 100.0, gap=10.0)
        [90.0, 100.0]
    """
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    blocks: list[tuple[float, int]] = []  # where each block of neighbours starts, and how many are in it
    for place in wanted:
        start, num = min(max(place, low), high), 1
        while blocks and start < blocks[-1][0] + gap * blocks[-1][1]:
            before, num_before = blocks.pop()
            # The middle of the joined block is the mean of where its members would be.
            start = (before * num_before + (start - gap * num_before) * num) / (num_before + num)
            num += num_before
            start = min(max(start, low), high - gap * (num - 1))
        blocks.append((start, num))
    return [start + gap * i for start, num in blocks for i in range(num)]


def name_places(
    names: Sequence[str], points: Sequence[tuple[float, float]], box: tuple[float, float, float]
) -> list[tuple[float, float, str]]:
    """Where each name is written: at the first side of its point where it covers no point and no other name.

    Args:
        names: The names, 12 pixels high.
        points: Where their points are.
        box: Left, right and upper end of the data area.

    Returns:
        For each, its place and the value of ``text-anchor``.

    Example:
        >>> name_places(["a", "b"], [(50.0, 50.0), (64.0, 50.0)], (0.0, 100.0, 0.0))
        [(40.0, 54.0, 'end'), (74.0, 54.0, 'start')]
    """
    left_end, right_end, top = box
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    found = []
    for name, (x, y) in zip(names, points, strict=True):
        width = 6.8 * len(name)
        sides = [
            (x + 10, y + 4, "start", x + 10),
            (x - 10, y + 4, "end", x - 10 - width),
            (x, y - 11, "middle", x - width / 2),
            (x, y + 20, "middle", x - width / 2),
            (x + 8, y - 10, "start", x + 8),
            (x + 8, y + 18, "start", x + 8),
            (x - 8, y - 10, "end", x - 8 - width),
            (x - 8, y + 18, "end", x - 8 - width),
        ]
        spots = [(left, at - 11, left + width, at + 3) for _, at, _, left in sides]
        inside = [left_end < b[0] and b[2] < right_end + 14 and top < b[1] + 8 for b in spots]
        free = [i for i, spot in enumerate(spots) if inside[i] and not any(_overlap(spot, other) for other in taken)]
        best = next(iter(free), next((i for i, ok in enumerate(inside) if ok), 0))
        taken.append(spots[best])
        found.append(sides[best][:3])
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
