"""The headline numbers for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pliant.intervals import Estimate
from pliant.records import Record
from pliant.report._write import write_text
from pliant.report.metrics import Metric, format_estimate
from pliant.report.summary import Row, Stream, headline, headline_metrics, summarise

__all__ = ["cells", "columns", "csv_text", "markdown_text", "terminal_tables", "write_csv", "write_markdown"]

FOOTNOTE = (
    "Mean ± half of the 95 % t interval over seeds, of each seed's mean over those tasks. The difference is to no "
    "protection on the same seeds, over the last tasks. Failed seeds are in no mean; they are counted beside it."
)


def columns(stream: Stream, metric: Metric) -> list[str]:
    """The headings of a headline table."""
    unit = ", %" if metric.percent else ""
    points = ", points" if metric.percent else ""
    k = stream.window
    return [
        "method",
        f"first {k} tasks{unit}",
        f"last {k} tasks{unit}",
        f"change{points}",
        f"vs no protection{points}",
        "seeds",
    ]


def cells(row: Row, metric: Metric) -> list[str]:
    """The texts of a headline row, under :func:`columns`."""
    difference = "–"
    if row.method.is_baseline:
        difference = "baseline"
    elif row.difference is not None:
        difference = format_estimate(row.difference, metric, signed=True)
    return [
        row.method.label,
        format_estimate(row.first, metric),
        format_estimate(row.last, metric),
        format_estimate(row.change, metric, signed=True),
        difference,
        seeds_text(row),
    ]


def seeds_text(row: Row) -> str:
    """How many seeds a row speaks for, and what became of the others."""
    parts = [str(row.last.num)]
    if row.num_failed:
        parts.append(f"{row.num_failed} failed")
    if row.last.num_excluded:
        parts.append(f"{row.last.num_excluded} not finite")
    if row.difference is not None and row.difference.num != row.last.num:
        parts.append(f"{row.difference.num} paired")
    return ", ".join(parts)


def terminal_tables(records: Iterable[Record]) -> RenderableType:
    """One table per stream and accuracy, for :meth:`rich.console.Console.print`.

    Raises:
        RecordError: If there is no record.
    """
    parts: list[RenderableType] = []
    for stream in summarise(records):
        for metric in headline_metrics(stream):
            title = f"{stream.title}: {metric.title.lower()}"
            table = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False)
            for i, heading in enumerate(columns(stream, metric)):
                table.add_column(Text(_narrow(heading)), justify="left" if i in (0, 5) else "right")
            for row in headline(stream, metric):
                style = "bold" if row.method.is_baseline else "dim" if row.method.is_reference else ""
                texts = [Text(text, style=style) for text in cells(row, metric)]
                if row.num_failed or row.last.num_excluded:
                    texts[-1].stylize("red")
                table.add_row(*texts)
            parts += [table, Text("")]
    parts.append(Text(FOOTNOTE, style="dim"))
    return Group(*parts)


def markdown_text(records: Iterable[Record]) -> str:
    """The headline tables as GitHub Markdown; names cannot break out of their cell.

    Raises:
        RecordError: If there is no record.
    """
    lines: list[str] = []
    for stream in summarise(records):
        for metric in headline_metrics(stream):
            lines += [f"### {_markdown(stream.title)}: {metric.title.lower()}", ""]
            headings = columns(stream, metric)
            lines.append("| " + " | ".join(headings) + " |")
            lines.append("|:--|" + "--:|" * (len(headings) - 2) + ":--|")
            for row in headline(stream, metric):
                lines.append("| " + " | ".join(map(_markdown, cells(row, metric))) + " |")
            lines.append("")
    lines.append(FOOTNOTE)
    return "\n".join(lines) + "\n"


def csv_text(records: Iterable[Record]) -> str:
    """Every metric's headline numbers in full precision, one line per stream, method and metric.

    The bounds are those of the 95 % intervals; a field is empty where there is no number, as for the interval of a
    single seed. Fractions are in ``[0, 1]`` here, never in percent.

    Raises:
        RecordError: If there is no record.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    blocks = ("first", "last", "change", "difference_to_no_protection")
    writer.writerow(
        ["stream", "stream_title", "method", "experiment_id", "metric", "window"]
        + [f"{block}_{part}" for block in blocks for part in ("mean", "low", "high")]
        + ["num_seeds", "num_pairs", "num_failed", "num_not_finite"]
    )
    for stream in summarise(records):
        for metric in stream.metrics:
            for row in headline(stream, metric):
                names = [stream.name, stream.title, row.method.label, row.method.experiment_id, metric.name]
                numbers = [_number(part) for block in blocks for part in _parts(_block(row, block))]
                pairs = "" if row.difference is None else row.difference.num
                counts = [row.last.num, pairs, row.num_failed, row.last.num_excluded]
                writer.writerow([*names, stream.window, *numbers, *counts])
    return file.getvalue()


def write_markdown(records: Iterable[Record], path: str | os.PathLike[str]) -> Path:
    """Write :func:`markdown_text` to a file, whole or not at all.

    Raises:
        RecordError: If there is no record, or the file cannot be written.
    """
    return write_text(path, markdown_text(records))


def write_csv(records: Iterable[Record], path: str | os.PathLike[str]) -> Path:
    """Write :func:`csv_text` to a file, whole or not at all.

    Raises:
        RecordError: If there is no record, or the file cannot be written.
    """
    return write_text(path, csv_text(records))


def _narrow(heading: str) -> str:
    """A heading on two lines, so that a table fits a terminal."""
    return heading.replace(" tasks, ", "\ntasks, ").replace("vs no ", "vs no\n").replace("change, ", "change,\n")


def _block(row: Row, name: str) -> Estimate | None:
    return {"first": row.first, "last": row.last, "change": row.change}.get(name, row.difference)


def _parts(block: Estimate | None) -> tuple[float | None, ...]:
    return (None, None, None) if block is None else (block.mean, block.low, block.high)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else repr(value)


def _markdown(text: str) -> str:
    """A name as it reads, without any of Markdown's or HTML's meaning, on one line."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", text)
