"""``pliant report``: what a folder of results says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, final

import tyro

from pliant.bench.names import unknown
from pliant.commands.base import Command, option
from pliant.errors import IllegalConfiguration, RecordError

__all__ = ["Report"]


@final
@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Report on the records in a folder: tables in the terminal, one HTML page, CSV, Markdown, a figure.

    Failed runs are counted beside every mean. Nothing is run, and nothing in the folder is changed.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pliant report results/ --out report.html",
        "pliant report results/ --csv results.csv --markdown results.md",
        "pliant report demo/results --figure demo.svg --stream random_label_digits",
    )
    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """results folder of pliant run or pliant demo"""
    out: Annotated[Path | None, option("FILE")] = None
    """write the report page, one HTML file that needs no network"""
    csv: Annotated[Path | None, option("FILE")] = None
    """write the headline numbers as CSV"""
    markdown: Annotated[Path | None, option("FILE")] = None
    """write the headline tables as Markdown"""
    figure: Annotated[Path | None, option("FILE")] = None
    """write one figure as SVG"""
    stream: Annotated[str | None, option("STREAM")] = None
    """only this stream; for --figure where there are several"""
    metric: Annotated[str, tyro.conf.arg(metavar="METRIC")] = "online_accuracy"
    """what --figure shows"""

    def run(self) -> int:
        """Read, print the tables, and write what was asked for."""
        from rich.console import Console

        from pliant import report
        from pliant.records import read_records
        from pliant.report._write import write_text

        records = read_records(self.folder)
        if not records:
            raise RecordError(f"{self.folder} holds no records; name the results folder of pliant run or pliant demo")
        names = list(dict.fromkeys(str(record.experiment["stream"]["name"]) for record in records))
        if self.stream is not None and self.stream not in names:
            raise unknown(f"stream in {self.folder}", self.stream, names)
        if self.stream is not None:
            records = [record for record in records if record.experiment["stream"]["name"] == self.stream]
        metrics = sorted({name for record in records for name in record.series})
        if self.figure is not None and self.metric not in metrics:
            raise unknown(f"metric in {self.folder}", self.metric, metrics)
        streams = report.summarise(records)
        if self.figure is not None and len(streams) > 1:
            raise IllegalConfiguration(
                f"--figure shows one stream, and {self.folder} has {len(streams)}: add --stream with one of "
                f"{', '.join(names)}"
            )
        console = Console()
        console.print(report.terminal_tables(records))
        written = []
        if self.out is not None:
            written.append(report.write_report(records, self.out))
        if self.csv is not None:
            written.append(report.write_csv(records, self.csv))
        if self.markdown is not None:
            written.append(report.write_markdown(records, self.markdown))
        if self.figure is not None:
            written.append(write_text(self.figure, report.figure_svg(streams, streams[0].name, self.metric)))
        for path in written:
            console.print(f"wrote {path}", soft_wrap=True, highlight=False)
        if self.out is None:
            console.print("the whole report: add --out report.html", style="dim")
        return 0
