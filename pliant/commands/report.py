"""``pliant report``: what a folder of results says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import tyro

from pliant.bench.names import unknown
from pliant.commands.base import Command, option
from pliant.errors import IllegalConfiguration, RecordError

if TYPE_CHECKING:
    from pliant.records import Record

__all__ = ["Report"]


@final
@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Report on the records in folders: tables in the terminal, one HTML page, CSV, Markdown, a figure.

    Failed runs are counted beside every mean. Lists of tuning trials that lie among the records become best-of-k curves
    in the page. Nothing is run, and nothing in the folders is changed.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pliant report results/ --out report.html",
        "pliant report results/ tuning/ --out report.html --threshold 0.8",
        "pliant report results/ --csv results.csv --markdown results.md",
        "pliant report demo/results --figure demo.svg --stream random_label_digits",
    )
    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER...", help_behavior_hint="")]
    """results folders of pliant run, pliant demo or pliant tune"""
    out: Annotated[Path | None, option("FILE")] = None
    """write the report page, one HTML file that needs no network"""
    csv: Annotated[Path | None, option("FILE")] = None
    """write the headline numbers as CSV"""
    markdown: Annotated[Path | None, option("FILE")] = None
    """write the headline tables as Markdown"""
    figure: Annotated[Path | None, option("FILE")] = None
    """write one figure as SVG"""
    stream: Annotated[str | None, option("STREAM")] = None
    """only this stream, by its name or its title; for --figure where there are several"""
    metric: Annotated[str, tyro.conf.arg(metavar="METRIC")] = "online_accuracy"
    """what --figure shows"""
    threshold: Annotated[float | None, option("SCORE")] = None
    """say after how many tasks this score is reached, in its own unit: 0.8 is an accuracy of 80 %"""

    def run(self) -> int:
        """Read, print the tables, and write what was asked for."""
        from rich.console import Console

        from pliant import report
        from pliant.report._write import write_text

        if not self.folder:
            raise IllegalConfiguration("name at least one folder: pliant report results/")
        where = ", ".join(map(str, self.folder))
        trials = [item for folder in self.folder for item in report.read_trials(folder)]
        records = self._records()
        tried = {(name, seed) for item in trials for name in item.ids for seed in item.seeds}
        # What chose the settings is no result of theirs; a folder of trials alone is reported as it is.
        kept = [record for record in records if (record.experiment_id, record.seed) not in tried]
        num_tried = len(records) - len(kept) if kept else 0
        records = kept or records
        if not records:
            raise RecordError(f"{where} holds no records; name the results folder of pliant run or pliant demo")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise IllegalConfiguration(f"--threshold {self.threshold}: give a number, such as 0.8")
        streams = report.summarise(records)
        if self.stream is not None:
            chosen = [stream for stream in streams if self.stream in (stream.name, stream.title)]
            if not chosen:
                names = list(dict.fromkeys(name for stream in streams for name in (stream.name, stream.title)))
                raise unknown(f"stream in {where}", self.stream, names)
            ids = {method.experiment_id for stream in chosen for method in stream.methods}
            records = [record for record in records if record.experiment_id in ids]
            streams = report.summarise(records)
        metrics = sorted({name for record in records for name in record.series})
        if self.figure is not None and self.metric not in metrics:
            raise unknown(f"metric in {where}", self.metric, metrics)
        if self.figure is not None and len(streams) > 1:
            names = list(dict.fromkeys(stream.name for stream in streams))
            if len(names) < len(streams):
                names = [stream.title for stream in streams]
            raise IllegalConfiguration(
                f"--figure shows one stream, and {where} has {len(streams)}: add --stream with one of "
                f"{', '.join(names)}"
            )
        console = Console()
        console.print(report.terminal_tables(records))
        if num_tried:
            console.print(f"{num_tried} records of tuning trials are in best-of-k curves only", style="dim")
        written = []
        if self.out is not None:
            written.append(report.write_report(records, self.out, trials=trials, threshold=self.threshold))
        if self.csv is not None:
            written.append(report.write_csv(records, self.csv))
        if self.markdown is not None:
            written.append(report.write_markdown(records, self.markdown, threshold=self.threshold))
        if self.figure is not None:
            written.append(write_text(self.figure, report.figure_svg(streams, streams[0].name, self.metric)))
        for path in written:
            console.print(f"wrote {path}", soft_wrap=True, highlight=False)
        if self.out is None:
            console.print("the whole report: add --out report.html", style="dim")
        return 0

    def _records(self) -> list[Record]:
        """Those of all folders; one that is in two of them is refused, because it would be counted twice."""
        from pliant.records import read_records

        found: dict[tuple[str, int], Record] = {}
        for folder in {path.resolve(): path for path in self.folder}.values():
            for record in read_records(folder):
                key = (record.experiment_id, record.seed)
                if key in found:
                    raise RecordError(
                        f"{folder}: seed {record.seed} of {record.experiment_id} is in another folder, too, and would "
                        "be counted twice. Name one of the two folders"
                    )
                found[key] = record
        return [found[key] for key in sorted(found)]
