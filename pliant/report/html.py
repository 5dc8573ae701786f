"""The report as one HTML page: no other file, no network, readable in light and dark and without scripts."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pliant.intervals import Estimate
from pliant.records import Record
from pliant.report._configuration import configuration_section, failures, provenance
from pliant.report._page import PAGE_SCRIPT, PAGE_STYLE
from pliant.report._write import write_text
from pliant.report.figures import Chart, chart_data, chart_svg, stream_curves
from pliant.report.metrics import Metric, format_estimate, format_value
from pliant.report.style import Style, escape, styles_of, swatch
from pliant.report.summary import Row, Stream, headline, headline_metrics, summarise
from pliant.report.tables import cells, columns, seeds_text

__all__ = ["html_text", "write_report"]

TITLE = "Does the network keep learning?"


def write_report(
    records: Iterable[Record], path: str | os.PathLike[str], *, title: str = TITLE, notes: Sequence[str] = ()
) -> Path:
    """Write the report page to a file, whole or not at all.

    Args:
        records: The records to report on, usually :func:`pliant.records.read_records` of a results folder.
        path: The file to write; its folder is made if need be.
        title: The page's title.
        notes: Paragraphs for the section of notes, plain text.

    Returns:
        The path.

    Raises:
        RecordError: If there is no record, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pliant.records import Record, experiment_id
        >>> config = {"stream": {"name": "digits"}, "methods": []}
        >>> name = experiment_id(config, "digits", "none")
        >>> series = {"online_accuracy": [0.9, 0.5]}
        >>> records = [Record(experiment=config, experiment_id=name, seed=s, series=series) for s in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(records, folder + "/report.html", title="Two tasks").read_text()
        >>> "<h1>Two tasks</h1>" in page and "http" not in page.replace("http-equiv", "")
        True
    """
    return write_text(path, html_text(records, title=title, notes=notes))


def html_text(records: Iterable[Record], *, title: str = TITLE, notes: Sequence[str] = ()) -> str:
    """The report page as text; see :func:`write_report`.

    Every text that comes from a record is escaped, and the page's own policy allows no script but its own and no
    address at all.
    """
    streams = summarise(records)
    styles = styles_of(streams)
    script_hash = base64.b64encode(hashlib.sha256(PAGE_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    anchors = {id(stream): f"stream-{i}" for i, stream in enumerate(streams)}
    links = "".join(f'<a href="#{anchors[id(s)]}">{escape(s.title)}</a>' for s in streams)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head><body>\n",
        f'<header><div class="brand">Pliant report</div><h1>{escape(title)}</h1>{_lede(streams)}',
        f'<nav>{links}<a href="#reading">How to read this</a><a href="#configuration">What exactly was run</a>',
        f"{'<a href=#notes>Notes</a>' if notes else ''}</nav></header>\n<main>\n",
        f'<div class="short">{"".join(_card(stream, styles) for stream in streams)}</div>\n',
        *(_stream_section(stream, styles, anchors[id(stream)]) for stream in streams),
        _reading_section(streams),
        configuration_section(streams, styles),
        _notes_section(notes),
        f"</main>\n<footer><p>{_footer(streams)}</p></footer>\n",
        f"<script>{PAGE_SCRIPT}</script></body></html>\n",
    ]
    return "".join(parts)


# ---------------------------------------------------------------------------------------------------- the top


def _lede(streams: Sequence[Stream]) -> str:
    """What was run, in plain words."""
    labels = {m.label for s in streams for m in s.methods}
    seeds = sorted({len(m.complete) + len(m.failed) for s in streams for m in s.methods})
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    methods = "One way of training" if len(labels) == 1 else f"{_count(len(labels)).capitalize()} ways of training"
    of = "a stream of tasks" if len(streams) == 1 else f"{_count(len(streams))} streams of tasks"
    runs = sum(len(m.complete) + len(m.failed) for s in streams for m in s.methods)
    seeds_word = "seed" if each == "1" else "seeds"
    return (
        f'<p class="lede">A neural network that is trained on one task after another can slowly lose its ability to '
        f"learn: it is said to lose plasticity. {methods} met {of} here, each with {each} {seeds_word}. A network "
        f"that keeps its plasticity learns the last task as well as the first.</p>"
        f'<p class="facts">{runs} {"run" if runs == 1 else "runs"} · {escape(provenance(streams))}</p>'
    )


def _card(stream: Stream, styles: dict[str, Style]) -> str:
    """One stream's outcome in sentences, made from its headline numbers alone."""
    parts = [f'<div class="card"><h3>{escape(stream.title)}</h3>']
    metrics = headline_metrics(stream)
    if not metrics:
        return "".join([*parts, "<p>No series was recorded.</p></div>"])
    metric = metrics[0]
    rows = headline(stream, metric)
    what = metric.title[0].lower() + metric.title[1:]
    if stream.control:
        parts.append(
            "<p>Nothing changes between the tasks here: the stream shows what a method costs in calm times.</p>"
        )
    for row in rows:
        if row.method.is_baseline and row.last.num:
            verb = (
                "goes from" if not row.change.excludes_zero else "falls from" if row.change.mean < 0 else "rises from"
            )
            unit = "&nbsp;%" if metric.percent else ""
            parts.append(
                f"<p>{_name(row, styles)}: {what} {verb} <b>{format_value(row.first.mean, metric)}{unit}</b> over the "
                f"first {stream.window} tasks to <b>{format_value(row.last.mean, metric)}{unit}</b> over the last.</p>"
            )
    compared = [(row, row.difference) for row in rows if row.difference is not None and row.difference.num > 1]
    compared.sort(key=lambda pair: -pair[1].mean)
    if compared:
        lines = ""
        for row, difference in compared:
            cell = _cell(format_estimate(difference, metric, signed=True), difference if _good(metric) else None)
            lines += f"<tr><td>{_name(row, styles)}</td>{cell}</tr>"
        points = " points" if metric.percent else ""
        parts.append(f"<p>The last {stream.window} tasks against no protection,{points} on the same seeds:</p>")
        parts.append(f"<table>{lines}</table>")
    failed = sum(row.num_failed for row in rows)
    if failed:
        parts.append(f'<p class="failed">{failed} {"run" if failed == 1 else "runs"} failed, see below.</p>')
    return "".join([*parts, "</div>\n"])


# -------------------------------------------------------------------------------------------------- a stream


def _stream_section(stream: Stream, styles: dict[str, Style], anchor: str) -> str:
    tag = '<span class="tag">stationary control</span>' if stream.control else ""
    parts = [f'<section id="{anchor}" data-stream><h2>{escape(stream.title)}{tag}</h2>']
    if stream.description:
        parts.append(f'<p class="text">{escape(stream.description)}</p>')
    parts.append(_legend(stream, styles))
    metrics = headline_metrics(stream)
    for metric in metrics:
        parts.append(_figure(stream, metric, styles, Chart(1072, 400, names=True, window=stream.window)))
        parts.append(_table(stream, metric, styles))
    parts.append(failures(stream))
    others = [m for m in stream.metrics if m not in metrics]
    small = [_figure(stream, metric, styles, Chart(520, 280)) for metric in others]
    if any(small):
        parts.append(f'<div class="grid">{"".join(small)}</div>')
    return "".join([*parts, "</section>\n"])


def _legend(stream: Stream, styles: dict[str, Style]) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="false" data-label="{escape(m.label)}">'
        f"{swatch(styles[m.label])}{escape(m.label)}</button>"
        for m in stream.methods
    )
    return f'<div class="legend">{buttons}</div>'


def _figure(stream: Stream, metric: Metric, styles: dict[str, Style], chart: Chart) -> str:
    curves = stream_curves(stream, metric, styles)
    if not curves:
        return ""
    wide = ' class="wide"' if chart.names else ""
    return (
        f"<figure data-chart{wide}><figcaption><b>{escape(metric.title)}</b>"
        f"<span>{escape(metric.text)}</span></figcaption>"
        f'{chart_svg(curves, metric, chart)}<div class="tip"></div>'
        f'<script type="application/json">{chart_data(curves, metric)}</script></figure>\n'
    )


def _table(stream: Stream, metric: Metric, styles: dict[str, Style]) -> str:
    headings = columns(stream, metric)
    rows = headline(stream, metric)
    head = "".join(map(_heading, headings[:3]))
    if metric.percent:
        head += '<th scope="col" style="text-align:center">first ○ to last ●<small>0 to 100 %</small></th>'
    head += "".join(map(_heading, headings[3:]))
    body = "".join(_table_row(row, metric, styles) for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def _heading(text: str) -> str:
    name, _, unit = text.partition(", ")
    return f'<th scope="col">{escape(name)}{f"<small>{unit}</small>" if unit else ""}</th>'


def _table_row(row: Row, metric: Metric, styles: dict[str, Style]) -> str:
    texts = cells(row, metric)
    style = styles[row.method.label]
    named = "reference" in row.method.label.lower()
    tag = '<span class="tag">reference</span>' if row.method.is_reference and not named else ""
    parts = [f"<td>{swatch(style)}{escape(texts[0])}{tag}</td>", _cell(texts[1]), _cell(texts[2])]
    if metric.percent:
        parts.append(f"<td>{_slope(row, style)}</td>")
    parts.append(_cell(texts[3], row.change if _good(metric) else None))
    parts.append(_cell(texts[4], row.difference if _good(metric) else None))
    broken = row.num_failed or row.last.num_excluded
    parts.append(f"<td{' class=failed' if broken else ''}>{escape(seeds_text(row))}</td>")
    return f"<tr{' class=reference' if row.method.is_reference else ''}>{''.join(parts)}</tr>"


def _good(metric: Metric) -> bool:
    """Whether more of it is better, so that a difference may be coloured."""
    return metric.name.endswith("accuracy")


def _cell(text: str, verdict: Estimate | None = None) -> str:
    """A number whose half width steps back; coloured where more is better and the interval is clear of 0."""
    mean, sign, half = text.partition(" ± ")
    colour = "" if verdict is None or not verdict.excludes_zero else " class=good" if verdict.low > 0 else " class=bad"
    return f'<td><span{colour}>{escape(mean)}</span><span class="pm">{sign}{escape(half)}</span></td>'


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


def _name(row: Row, styles: dict[str, Style]) -> str:
    return f"{swatch(styles[row.method.label])}{escape(row.method.label)}"


# ------------------------------------------------------------------------------------------------- the bottom


def _reading_section(streams: Sequence[Stream]) -> str:
    k = max(s.window for s in streams)
    items = (
        f"<b>First and last {k} tasks.</b> Each seed's mean over those tasks (marked in the figures), then the mean "
        "over seeds. Shorter streams use half of their tasks at either end.",
        "<b>± and bands.</b> Half of the 95 % interval of the mean over seeds (Student's t). With one seed there is "
        "no interval, and it says “?”. Intervals are not corrected for comparing several methods.",
        "<b>vs no protection.</b> The mean over seeds of the difference in the last tasks to unprotected training on "
        "the same seed: the same data in the same order. Coloured where the interval does not contain zero.",
        "<b>Failed runs.</b> A run that broke off, or whose numbers are not finite, is in no mean, because what it "
        "would have reached is unknown. It is counted in red beside every mean that lacks it.",
        "<b>Reference.</b> A freshly initialised network for every task. It cannot lose plasticity, but it starts "
        "without experience: a network that is warm may do better.",
    )
    body = "".join(f"<p>{item}</p>" for item in items)
    return f'<section id="reading"><h2>How to read this page</h2><div class="text">{body}</div></section>\n'


def _notes_section(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    body = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<section id="notes"><h2>Notes</h2><div class="text">{body}</div></section>\n'


def _footer(streams: Sequence[Stream]) -> str:
    num = sum(len(m.complete) + len(m.failed) for s in streams for m in s.methods)
    return (
        f"Made by Pliant from {num} records, and from nothing else: the numbers of every run lie beside its "
        "configuration in the results folder. This page loads nothing from anywhere."
    )


def _count(number: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return words[number] if number < len(words) else str(number)
