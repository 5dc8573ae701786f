"""``pliant demo``: see a network lose its ability to learn, and keep it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import tyro

from pliant.commands.base import Command, option
from pliant.commands.values import parse_seeds
from pliant.errors import IllegalConfiguration

if TYPE_CHECKING:
    from pliant.bench.demo import Tuned

__all__ = ["Demo"]

_INTRODUCTION = """\
A network learns one task after another, on real handwritten digits. Six ways of training it, three streams of tasks:
random labels (every task is equally hard, so any decline is the network's own), permuted pixels with held-out digits,
and a control in which nothing changes."""


@final
@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """See, on real data and within minutes, how a network loses its ability to learn and how it keeps it.

    Trains on 1,797 handwritten digits that come with the package, and ends with a table and report.html. The records
    of all runs stay in OUT/results; stop it whenever you like, the same command goes on.
    """

    examples: ClassVar[tuple[str, ...]] = ("pliant demo", "pliant demo --quick", "pliant demo --seeds 30 --out demo30")

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("demo")
    """folder for the records and report.html"""
    seeds: Annotated[str, tyro.conf.arg(metavar="N|A:B")] = "10"
    """seeds 0 to N-1, or A to B-1; the same for every method, so that they are compared in pairs"""
    quick: Annotated[bool, option()] = False
    """only the first tasks of each stream and 3 seeds, into FOLDER/quick: to see that it works"""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 2
    """processes; 0 runs everything in this process"""

    def run(self) -> int:
        """Run, print the tables, write the report."""
        from rich.console import Console

        from pliant.bench.demo import demo
        from pliant.bench.tune import TUNING_SEEDS
        from pliant.commands.execute import Limits, execute, exit_code, records_of, say_how_it_ended
        from pliant.commands.progress import duration
        from pliant.report import terminal_tables, write_report

        seeds = parse_seeds("3" if self.quick and self.seeds == "10" else self.seeds)
        if set(seeds) & set(TUNING_SEEDS):
            raise IllegalConfiguration(
                f"--seeds {self.seeds}: seeds {TUNING_SEEDS[0]} to {TUNING_SEEDS[-1]} chose the settings and cannot be "
                "reported on; leave them out"
            )
        if self.workers < 0:
            raise IllegalConfiguration(f"--workers {self.workers}: give 0 or a positive number")
        started = time.monotonic()
        console = Console()
        console.print(_INTRODUCTION, soft_wrap=console.width >= 118, style="dim")
        console.print()
        folder = self.out / "quick" if self.quick else self.out
        tuned = demo(quick=self.quick)
        experiments = [experiment for item in tuned for experiment in item.experiments]
        outcome = execute(experiments, seeds, folder / "results", Limits(self.workers))
        if outcome.interrupted:
            say_how_it_ended(outcome, Console(stderr=True))
            return exit_code(outcome)
        records = records_of(experiments, folder / "results")
        console.print(terminal_tables(records))
        say_how_it_ended(outcome, Console(stderr=True))
        path = write_report(records, folder / "report.html", notes=self._notes(tuned))
        took = duration(time.monotonic() - started)
        console.print(f"\n{took}. The whole report, for your browser: {path}", soft_wrap=True, highlight=False)
        return exit_code(outcome)

    def _notes(self, tuned: list[Tuned]) -> list[str]:
        notes = [f"{item.stream.replace('_', ' ').capitalize()}: {item.text}" for item in tuned if item.text]
        if self.quick:
            notes.append("This was the quick demo: too few tasks and seeds to say what becomes of a network.")
        notes.append(
            "The digits are the 1,797 of the test part of Optical Recognition of Handwritten Digits, E. Alpaydin and "
            "C. Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49, licence CC BY 4.0."
        )
        return notes
