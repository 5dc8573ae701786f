"""Tables as data: headings, and cells with what they show and are sorted by. HTML and Markdown are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pliant.intervals import Estimate
from pliant.report.metrics import Metric, format_estimate, format_interval, format_value
from pliant.report.summary import Method
from pliant.statistics import Times

__all__ = [
    "ALPHA",
    "EMPTY",
    "Cell",
    "Grid",
    "Heading",
    "Line",
    "difference_cell",
    "finite",
    "interval_cell",
    "number_cell",
    "seconds_cell",
    "times_cell",
    "with_best",
]

ALPHA = 0.05
"""A corrected p-value below it marks a difference."""


@dataclass(frozen=True)
class Heading:
    """A column.

    Args:
        name: What stands above it.
        unit: Below the name.
        about: A sentence on what it is.
        stream: The place of the stream that it belongs to, if it belongs to one.
        better: ``"higher"``, ``"lower"`` or nothing.
    """

    name: str
    unit: str = ""
    about: str = ""
    stream: int | None = None
    better: str = ""


@dataclass(frozen=True)
class Cell:
    """One entry.

    Args:
        text: What is shown.
        value: The number behind it, by which a column is sorted; ``None``: no number.
        verdict: ``good``, ``bad``, ``best``, or several of them.
        run: The experiment that it comes from, where its row has several.
        drawing: SVG text, shown instead of the text in a page.
    """

    text: str
    value: float | None = None
    verdict: str = ""
    run: str = ""
    drawing: str = ""


@dataclass(frozen=True)
class Line:
    """One row: a method, and its cells under all headings but the first, which is the method's name.

    Args:
        label: The name.
        method: It, if the row is one method.
        cells: Its cells.
        run: The experiment that the whole row comes from, if it is one.
    """

    label: str
    method: Method | None
    cells: tuple[Cell, ...]
    run: str = ""


@dataclass(frozen=True)
class Grid:
    """A table whose first column is the methods' names.

    Args:
        headings: Of all columns.
        lines: The rows.
        sorted_by: The column by which the rows are sorted, its better end first.
    """

    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    sorted_by: int | None = None

    def texts(self) -> list[list[str]]:
        """Headings and rows as plain text."""
        head = [f"{h.name}{f', {h.unit}' if h.unit else ''}" for h in self.headings]
        return [head, *([line.label, *(cell.text for cell in line.cells)] for line in self.lines)]


EMPTY = Cell("–")


def number_cell(estimate: Estimate | None, metric: Metric) -> Cell:
    """A mean with half of its interval."""
    if estimate is None or not math.isfinite(estimate.mean):
        return EMPTY
    return Cell(format_estimate(estimate, metric), estimate.mean)


def difference_cell(
    estimate: Estimate | None, metric: Metric, p_adjusted: float | None = None, *, baseline: bool = False
) -> Cell:
    """A difference, coloured by its corrected p-value where it has one, else by its interval."""
    if baseline:
        return Cell("baseline")
    if estimate is None or not math.isfinite(estimate.mean):
        return EMPTY
    shown = estimate.excludes_zero if p_adjusted is None else p_adjusted < ALPHA
    verdict = "" if not (shown and metric.better) else "good" if metric.sign * estimate.mean > 0 else "bad"
    return Cell(format_estimate(estimate, metric, signed=True), estimate.mean, verdict)


def interval_cell(estimate: Estimate | None, factor: float = 1.0, digits: int = 2) -> Cell:
    """A number with both of its bounds, times a factor."""
    if estimate is None or math.isnan(estimate.mean):
        return EMPTY
    if not math.isfinite(estimate.mean):
        return Cell("diverged", estimate.mean)
    scaled = Estimate(factor * estimate.mean, factor * estimate.low, factor * estimate.high, estimate.num)
    return Cell(format_interval(scaled, digits), scaled.mean)


def times_cell(found: Times | None) -> Cell:
    """A median, and how many arrived where not all did."""
    if found is None or found.num == 0:
        return EMPTY
    if math.isinf(found.median):
        text = "never" if found.num_reached == 0 else f"mostly never ({found.num_reached} of {found.num})"
        return Cell(text, math.inf)
    text = f"{found.median:g}"
    return Cell(
        text if found.num_reached == found.num else f"{text} ({found.num_reached} of {found.num})", found.median
    )


def seconds_cell(estimate: Estimate | None, *, signed: bool = False) -> Cell:
    """A time in seconds or milliseconds."""
    if estimate is None or not math.isfinite(estimate.mean):
        return EMPTY
    small = abs(estimate.mean) < 1
    text = format_value(1000 * estimate.mean if small else estimate.mean, Metric("seconds", "Seconds"), signed=signed)
    return Cell(f"{text} {'ms' if small else 's'}", estimate.mean)


def finite(value: float) -> float | None:
    """The value, or nothing where it is no finite number."""
    return value if math.isfinite(value) else None


def with_best(grid: Grid) -> Grid:
    """The best number of each column is marked, where one is better; of several equal ones, all."""
    lines = [list(line.cells) for line in grid.lines]
    for column, heading in enumerate(grid.headings[1:]):
        values = [row[column].value for row in lines]
        numbers = [v for v in values if v is not None and not math.isnan(v)]
        if heading.better not in ("higher", "lower") or len(set(numbers)) < 2 or heading.name.startswith("p,"):
            continue
        best = max(numbers) if heading.better == "higher" else min(numbers)
        for row, value in zip(lines, values, strict=True):
            if value == best:
                row[column] = replace(row[column], verdict=f"{row[column].verdict} best".strip())
    kept = [replace(line, cells=tuple(cells)) for line, cells in zip(grid.lines, lines, strict=True)]
    return replace(grid, lines=tuple(kept))
