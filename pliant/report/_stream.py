"""The part of the page about one stream: what became of the methods, in figures and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pliant.intervals import Estimate
from pliant.report._configuration import failures
from pliant.report._tables import grid_html
from pliant.report.cells import ALPHA, Cell, Grid, Heading, Line
from pliant.report.curves import MAX_POINTS, chart_data, stream_curves
from pliant.report.figures import Chart, chart_svg
from pliant.report.grids import standing_grid
from pliant.report.metrics import Metric, format_value
from pliant.report.standings import standings
from pliant.report.style import Style, escape, swatch
from pliant.report.summary import Row, Stream, headline, headline_metrics
from pliant.report.tables import cells, columns, seeds_text

__all__ = ["metric_figure", "stream_section"]

NUM_OPEN = 4
"""Of more streams than that, what happened inside the networks is folded away."""


def stream_section(
    stream: Stream, styles: dict[str, Style], anchor: str, *, num_streams: int, threshold: float | None
) -> str:
    """The section: a sentence, a figure and a table for each score, further quantities, and the insides."""
    tag = '<span class="tag">stationary control</span>' if stream.control else ""
    parts = [f'<section id="{anchor}" data-stream="{anchor}"><h2>{escape(stream.title)}{tag}</h2>']
    if stream.description:
        parts.append(f'<p class="text">{escape(stream.description)}</p>')
    metrics = headline_metrics(stream)
    if not metrics:
        parts.append('<p class="none">No series was recorded.</p>')
    for i, metric in enumerate(metrics):
        rows = headline(stream, metric)
        if i == 0:
            parts.append(_in_short(stream, rows, metric, styles))
        parts.append(metric_figure(stream, metric, styles, Chart(1072, 400, names=True, window=stream.window)))
        parts.append(grid_html(_headline_grid(stream, metric, rows, styles), styles, f"{stream.title}: {metric.title}"))
    more = standing_grid(standings(stream, threshold))
    if len(more.headings) > 2:
        parts.append("<h3>Over the whole stream: score, fresh networks, stability, cost</h3>")
        parts.append(grid_html(more, styles, f"{stream.title}: over the whole stream"))
    parts.append(failures(stream))
    others = [metric_figure(stream, m, styles, Chart(520, 280)) for m in stream.metrics if m not in metrics]
    others = [figure for figure in others if figure]
    if others:
        name = f"Inside the networks: {len(others)} {'figure' if len(others) == 1 else 'figures'}"
        unfolded = " open" if num_streams <= NUM_OPEN else ""
        parts.append(f'<details{unfolded}><summary>{name}</summary><div class="grid">{"".join(others)}</div></details>')
    return "".join([*parts, "</section>\n"])


def metric_figure(stream: Stream, metric: Metric, styles: dict[str, Style], chart: Chart) -> str:
    """One series over the tasks, with what the pointer shows; nothing where no complete run has it."""
    curves = stream_curves(stream, metric, styles, MAX_POINTS if chart.names else MAX_POINTS // 2)
    if not curves:
        return ""
    wide = ' class="wide"' if chart.names else ""
    step = max(curve.step for curve in curves)
    note = f" Each point is the mean over {step} tasks." if step > 1 else ""
    return (
        f"<figure data-chart{wide}><figcaption><b>{escape(metric.title)}</b>"
        f"<span>{escape(metric.text)}{note}</span></figcaption>"
        f'{chart_svg(curves, metric, chart)}<div class="tip" role="status"></div>'
        f'<script type="application/json">{chart_data(curves, metric)}</script></figure>\n'
    )


def _in_short(stream: Stream, rows: Sequence[Row], metric: Metric, styles: dict[str, Style]) -> str:
    """What becomes of unprotected training, in a sentence made from its headline numbers."""
    parts = []
    if stream.control:
        parts.append("Nothing changes between the tasks here: the stream shows what a method costs in calm times.")
    for row in rows:
        if row.method.is_baseline and row.last.num:
            moves = "falls from" if row.change.mean < 0 else "rises from"
            verb = moves if row.change.excludes_zero else "goes from"
            unit = "&nbsp;%" if metric.percent else ""
            style = styles[row.method.label]
            tasks = f"{stream.window} tasks" if stream.window > 1 else "task"
            parts.append(
                f"{swatch(style)}<b>{escape(row.method.label)}</b>: {escape(metric.words)} {verb} "
                f"<b>{format_value(row.first.mean, metric)}{unit}</b> over the first {tasks} to "
                f"<b>{format_value(row.last.mean, metric)}{unit}</b> over the last."
            )
    failed = sum(row.num_failed for row in rows)
    if failed:
        noun = "run" if failed == 1 else "runs"
        parts.append(f'<span class="failed">{failed} {noun} failed, see below.</span>')
    return f'<p class="text">{" ".join(parts)}</p>' if parts else ""


def _headline_grid(stream: Stream, metric: Metric, rows: Sequence[Row], styles: dict[str, Style]) -> Grid:
    names = [text.partition(", ") for text in columns(stream, metric)]
    about = ("", "", "", "", "Difference on the same seeds; coloured where Holm's corrected p-value is below 0.05.", "")
    better = ("", metric.better, metric.better, metric.better, metric.better, "higher")
    headings = [Heading(n, u, a, better=b) for (n, _, u), a, b in zip(names, about, better, strict=True)]
    if metric.percent:
        headings.insert(3, Heading("first ○ to last ●", "0 to 100 %"))
    return Grid(tuple(headings), tuple(_line(row, metric, styles) for row in rows))


def _line(row: Row, metric: Metric, styles: dict[str, Style]) -> Line:
    texts = cells(row, metric)
    broken = row.num_failed or row.last.num_excluded
    clear = "" if row.difference is None else _verdict(row.difference, metric, row.p_adjusted < ALPHA)
    found = [
        Cell(texts[1], _finite(row.first)),
        Cell(texts[2], _finite(row.last)),
        Cell(texts[3], _finite(row.change), _verdict(row.change, metric, row.change.excludes_zero)),
        Cell(texts[4], None if row.difference is None else _finite(row.difference), clear),
        Cell(seeds_text(row), float(row.last.num), "failed" if broken else ""),
    ]
    if metric.percent:
        found.insert(2, Cell("", drawing=_slope(row, styles[row.method.label]) or " "))
    return Line(row.method.label, row.method, tuple(found), row.method.experiment_id)


def _finite(estimate: Estimate) -> float | None:
    return estimate.mean if math.isfinite(estimate.mean) else None


def _verdict(estimate: Estimate, metric: Metric, clear: bool) -> str:
    if not clear or not metric.better:
        return ""
    return "good" if metric.sign * estimate.mean > 0 else "bad"


def _slope(row: Row, style: Style) -> str:
    """From the first tasks to the last on a line from 0 to 100 %."""
    if not row.last.num:
        return ""
    a, b = (5 + 140 * min(max(e.mean, 0.0), 1.0) for e in (row.first, row.last))
    return (
        '<svg class="slope" viewBox="0 0 150 22" aria-hidden="true">'
        '<line x1="5" x2="145" y1="11" y2="11" stroke="var(--grid)" stroke-width="2"/>'
        f'<g stroke="{style.css}"><line x1="{a:.1f}" x2="{b:.1f}" y1="11" y2="11" stroke-width="3"/>'
        f'<circle cx="{a:.1f}" cy="11" r="4" fill="var(--paper)" stroke-width="2"/>'
        f'<circle cx="{b:.1f}" cy="11" r="5" fill="{style.css}" stroke="none"/></g></svg>'
    )
