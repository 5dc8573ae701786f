"""The headline numbers for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pliant.intervals import Estimate, estimate
from pliant.records import Record
from pliant.report._write import write_text
from pliant.report.grids import leaderboard, standing_grid
from pliant.report.metrics import Metric, format_estimate
from pliant.report.overview import overview
from pliant.report.standings import averages, standings
from pliant.report.summary import Method, Row, Stream, headline, headline_metrics, summarise

__all__ = ["cells", "columns", "csv_text", "markdown_text", "terminal_tables", "write_csv", "write_markdown"]

FOOTNOTE = (
    "Mean ± half of the 95 % t interval over seeds, of each seed's mean over those tasks. The difference is to no "
    "protection on the same seeds, over the last tasks. Failed seeds are in no mean; they are counted beside it."
)
BRACKETS = (
    "[low, high]: 95 % interval by stratified bootstrap over seeds. p, corrected: Student's paired test against no "
    "protection, with Holm's correction for the methods of the table."
)


def columns(stream: Stream, metric: Metric) -> list[str]:
    """The headings of a headline table."""
    unit = ", %" if metric.percent else ""
    points = ", points" if metric.percent else ""
    tasks = f"{stream.window} tasks" if stream.window > 1 else "task"
    return [
        "method",
        f"first {tasks}{unit}",
        f"last {tasks}{unit}",
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

    Example:
        >>> from pliant.records import Record, experiment_id
        >>> def run(seed, last):
        ...     config = {"stream": {"name": "digits"}, "methods": [], "num_tasks": 2}
        ...     name = experiment_id(config, "digits", "none")
        ...     return Record(experiment=config, experiment_id=name, seed=seed, series={"online_accuracy": [0.5, last]})
        >>> records = [run(0, 0.25), run(1, 0.75)]
        >>> from rich.console import Console
        >>> Console(width=100).print(terminal_tables(records))
        Digits: accuracy while learning...
    """
    parts: list[RenderableType] = []
    for stream in summarise(records):
        for metric in headline_metrics(stream):
            title = f"{stream.title}: {metric.words}"
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


def markdown_text(records: Iterable[Record], *, threshold: float | None = None) -> str:
    """The leaderboard and all tables of the page as GitHub Markdown; names cannot break out of their cell.

    Args:
        records: The records to report on.
        threshold: See :func:`pliant.report.write_report`.

    Raises:
        RecordError: If there is no record.

    Example:
        >>> from pliant.records import Record, experiment_id
        >>> def run(seed, last):
        ...     config = {"stream": {"name": "digits"}, "methods": [], "num_tasks": 2}
        ...     name = experiment_id(config, "digits", "none")
        ...     return Record(experiment=config, experiment_id=name, seed=seed, series={"online_accuracy": [0.5, last]})
        >>> records = [run(0, 0.25), run(1, 0.75)]
        >>> "Digits" in markdown_text(records)
        True
    """
    streams = summarise(records)
    found = overview(streams, threshold)
    lines: list[str] = []
    if len(found.entries) > 1:
        lines += ["### Leaderboard", "", *_rows(leaderboard(found).texts()), ""]
    for stream in streams:
        for metric in headline_metrics(stream):
            lines += [f"### {_markdown(stream.title)}: {metric.words}", ""]
            table = [columns(stream, metric), *(cells(row, metric) for row in headline(stream, metric))]
            lines += [*_rows(table, left_last=True), ""]
        more = standing_grid(standings(stream, threshold))
        if len(more.headings) > 2:
            lines += [f"### {_markdown(stream.title)}: over the whole stream", "", *_rows(more.texts()), ""]
    lines += [FOOTNOTE, "", _markdown(BRACKETS)] if len(found.entries) > 1 else [FOOTNOTE]
    return "\n".join(lines) + "\n"


def _rows(table: Sequence[Sequence[str]], *, left_last: bool = False) -> list[str]:
    """Lines of a Markdown table, the first row as its head."""
    last = ":--|" if left_last else "--:|"
    head, *body = ["| " + " | ".join(map(_markdown, row)) + " |" for row in table]
    return [head, "|:--|" + "--:|" * (len(table[0]) - 2) + last, *body]


def csv_text(records: Iterable[Record]) -> str:
    """Every metric's numbers in full precision with what they come from, one line per stream, method and metric.

    The bounds are those of the 95 % intervals; a field is empty where there is no number, as for the interval of a
    single seed. Fractions are in ``[0, 1]`` here, never in percent. Commits and versions are separated by spaces where
    the seeds of a line have several.

    Raises:
        RecordError: If there is no record.

    Example:
        >>> from pliant.records import Record, experiment_id
        >>> def run(seed, last):
        ...     config = {"stream": {"name": "digits"}, "methods": [], "num_tasks": 2}
        ...     name = experiment_id(config, "digits", "none")
        ...     return Record(experiment=config, experiment_id=name, seed=seed, series={"online_accuracy": [0.5, last]})
        >>> records = [run(0, 0.25), run(1, 0.75)]
        >>> csv_text(records).splitlines()[1].split(",")[0]
        'digits'
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    blocks = ("first", "last", "change", "difference_to_no_protection")
    writer.writerow(
        ["stream", "stream_title", "method", "experiment_id", "metric", "window"]
        + [f"{block}_{part}" for block in blocks for part in ("mean", "low", "high")]
        + ["num_seeds", "num_pairs", "num_failed", "num_not_finite", "difference_p_holm"]
        + [f"average_{part}" for part in ("mean", "low", "high")]
        + ["seeds", "commit", "pliant", "torch"]
    )
    for stream in summarise(records):
        for metric in stream.metrics:
            for row in headline(stream, metric):
                names = [stream.name, stream.title, row.method.label, row.method.experiment_id, metric.name]
                numbers = [_number(part) for block in blocks for part in _parts(_block(row, block))]
                pairs = "" if row.difference is None else row.difference.num
                counts = [row.last.num, pairs, row.num_failed, row.last.num_excluded]
                mean = estimate(averages(row.method, metric.name).values())
                more = [_number(row.p_adjusted), *map(_number, _parts(mean))]
                seeds = " ".join(str(record.seed) for record in row.method.complete)
                origin = [_said(row.method, key) for key in ("git_commit", "pliant", "torch")]
                writer.writerow([*names, stream.window, *numbers, *counts, *more, seeds, *origin])
    return file.getvalue()


def write_markdown(records: Iterable[Record], path: str | os.PathLike[str], *, threshold: float | None = None) -> Path:
    """Write :func:`markdown_text` to a file, whole or not at all.

    Raises:
        RecordError: If there is no record, or the file cannot be written.

    Example:
        >>> from pliant.records import Record, experiment_id
        >>> def run(seed, last):
        ...     config = {"stream": {"name": "digits"}, "methods": [], "num_tasks": 2}
        ...     name = experiment_id(config, "digits", "none")
        ...     return Record(experiment=config, experiment_id=name, seed=seed, series={"online_accuracy": [0.5, last]})
        >>> records = [run(0, 0.25), run(1, 0.75)]
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_markdown(records, f"{folder}/tables.md").name
        'tables.md'
    """
    return write_text(path, markdown_text(records, threshold=threshold))


def write_csv(records: Iterable[Record], path: str | os.PathLike[str]) -> Path:
    """Write :func:`csv_text` to a file, whole or not at all.

    Raises:
        RecordError: If there is no record, or the file cannot be written.

    Example:
        >>> from pliant.records import Record, experiment_id
        >>> def run(seed, last):
        ...     config = {"stream": {"name": "digits"}, "methods": [], "num_tasks": 2}
        ...     name = experiment_id(config, "digits", "none")
        ...     return Record(experiment=config, experiment_id=name, seed=seed, series={"online_accuracy": [0.5, last]})
        >>> records = [run(0, 0.25), run(1, 0.75)]
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_csv(records, f"{folder}/numbers.csv").name
        'numbers.csv'
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


def _said(method: Method, key: str) -> str:
    """What the records of a method say under a key, each value once."""
    values = [str(record.meta[key]) for record in method.complete + method.failed if record.meta.get(key)]
    return " ".join(dict.fromkeys(values))


def _markdown(text: str) -> str:
    """A name as it reads, without any of Markdown's or HTML's meaning, on one line."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", text)
