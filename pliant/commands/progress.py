"""Live progress of a run: one row per method and stream, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pliant.report.metrics import Metric, format_value, metric_info

if TYPE_CHECKING:
    from pliant.bench.experiment import Experiment
    from pliant.bench.runner import Progress

__all__ = ["Board", "duration"]

_LINE_EVERY = 60.0
"""Seconds between lines that say how far it is, where nothing can be redrawn."""


def duration(seconds: float) -> str:
    """A time as one reads it.

    >>> duration(4.2), duration(75), duration(7400)
    ('4 s', '1 min 15 s', '2 h 3 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@dataclass
class _Row:
    """One experiment: its seeds may be one job (stacked) or several."""

    stream: str
    label: str
    num_tasks: int
    num_steps: int
    num_seeds: int
    num_kept: int
    jobs: dict[tuple[int, ...], Progress] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Share of the seeds' tasks that is done."""
        done = sum(job.num_done * len(job.seeds) for job in self.jobs.values()) + self.num_kept * self.num_tasks
        return done / (self.num_tasks * self.num_seeds)

    @property
    def finished(self) -> bool:
        return self.fraction >= 1

    @property
    def seconds(self) -> float:
        return sum(job.seconds for job in self.jobs.values())

    @property
    def steps_done(self) -> float:
        """Optimizer steps behind ``seconds``."""
        return sum(job.num_done / job.num_tasks * self.num_steps for job in self.jobs.values())

    @property
    def steps_left(self) -> float:
        """Optimizer steps to go, each counted once for all seeds of a stack."""
        if not self.jobs:
            return 0.0 if self.finished else float(self.num_steps)
        running = sum((1 - job.num_done / job.num_tasks) * self.num_steps for job in self.jobs.values())
        seen = sum(len(job.seeds) for job in self.jobs.values())
        waiting = max(0, self.num_seeds - self.num_kept - seen) / max(1, seen / len(self.jobs))
        return running + waiting * self.num_steps

    def mean(self, name: str) -> float:
        """Mean of a field of the jobs over their seeds; NaN where nothing is known yet."""
        num = sum(len(job.seeds) for job in self.jobs.values())
        return sum(getattr(job, name) * len(job.seeds) for job in self.jobs.values()) / num if num else float("nan")

    @property
    def metric(self) -> Metric:
        """What its stream is scored by."""
        return metric_info(next((job.series for job in self.jobs.values()), "online_accuracy"))

    def shown(self, name: str) -> str:
        """That mean as it is printed; nothing while nothing is known."""
        value = self.mean(name)
        return f"{format_value(value, self.metric)} {self.metric.unit}".rstrip() if value == value else ""


class Board:
    """What :func:`pliant.bench.runner.run_experiments` reports, as a table that redraws itself.

    Args:
        experiments: What is run.
        steps: Experiment id to the optimizer steps of one seed.
        num_seeds: Seeds of each.
        kept: Experiment id to the number of seeds that have their record from before.
        num_workers: Processes that share the work.
        console: Where to draw; anything but a terminal gets one line per finished row instead, and one a minute.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        steps: Mapping[str, int],
        num_seeds: int,
        kept: Mapping[str, int],
        num_workers: int,
        console: Console,
    ) -> None:
        self.console = console
        self.num_workers = max(1, num_workers)
        self.started = time.monotonic()
        self.rows = {
            experiment.id: _Row(
                experiment.stream.short_name,
                experiment.label,
                experiment.num_tasks,
                steps[experiment.id],
                num_seeds,
                kept.get(experiment.id, 0),
            )
            for experiment in experiments
        }
        self._live: Live | None = None
        self._last_line = self.started

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw while the body runs; what stays is the last state."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self, console=self.console, refresh_per_second=4, transient=True) as self._live:
            yield
        self._live = None

    def update(self, progress: Progress) -> None:
        """Take one report."""
        row = self.rows[progress.experiment_id]
        was_finished = row.finished
        row.jobs[progress.seeds] = progress
        if self._live is None and row.finished and not was_finished:
            failed = f", {self._failed(row)} failed" if self._failed(row) else ""
            self.console.print(
                f"{row.stream}: {row.label}, {row.num_tasks} tasks, {row.metric.words} "
                f"{row.shown('mean_score')}, {duration(row.seconds)}{failed}",
                highlight=False,
                soft_wrap=True,
            )
            self._last_line = time.monotonic()
        elif self._live is None and time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            self.console.print(self._status(), highlight=False, soft_wrap=True)

    def _status(self) -> str:
        """Where everything is, in one line: for a log."""
        done = sum(row.fraction for row in self.rows.values()) / len(self.rows)
        left = self.seconds_left()
        what = f"{duration(left)} left" if left == left else "estimating the time"
        return f"{100 * done:.0f} % done, {duration(time.monotonic() - self.started)} so far, {what}"

    def seconds_left(self) -> float:
        """Estimated time to the end of everything; NaN until the first task is done."""
        rows = self.rows.values()
        done = sum(row.steps_done for row in rows)
        if not done:
            return float("nan")
        general = sum(row.seconds for row in rows) / done
        each = [row.steps_left * (row.seconds / row.steps_done if row.steps_done else general) for row in rows]
        return max(sum(each) / self.num_workers, max(each))

    def __rich__(self) -> RenderableType:
        """The table of this moment."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading, justify in (("", "left"), ("", "left"), ("task", "right"), ("now", "right"), ("mean", "right")):
            table.add_column(Text(heading, style="dim"), justify=justify)  # type: ignore[arg-type]
        table.add_column(Text("time left", style="dim"), justify="right")
        room = max(4, self.console.height - 4 - len({row.stream for row in self.rows.values()}))
        shown, hidden = self._choose(room)
        stream = None
        for row in shown:
            if row.stream != stream:
                stream = row.stream
                table.add_row(Text(stream, style="bold"))
            table.add_row(*self._cells(row))
        left = self.seconds_left()
        elapsed = duration(time.monotonic() - self.started)
        what = f"{duration(left)} left" if left == left else "estimating the time"
        note = f", {hidden} more rows not shown" if hidden else ""
        line = Text(f"{elapsed} so far, {what}{note}; Ctrl-C stops, the same command goes on", style="dim")
        return Group(table, line)

    def _choose(self, room: int) -> tuple[list[_Row], int]:
        """The rows that fit: those that run first, then what waits, then what is finished; in their own order."""
        rows = list(self.rows.values())
        rank = sorted(rows, key=lambda row: 2 if row.finished else 0 if row.jobs else 1)[:room]
        kept = {id(row) for row in rank}
        return [row for row in rows if id(row) in kept], len(rows) - len(kept)

    def _cells(self, row: _Row) -> list[RenderableType]:
        style = "green" if row.finished else "" if row.jobs else "dim"
        done = int(row.fraction * row.num_tasks + 1e-9)
        if row.finished:
            left = "done" if not self._failed(row) else f"{self._failed(row)} failed"
        elif row.steps_done:
            left = duration(row.steps_left * row.seconds / row.steps_done)
        else:
            left = "waiting"
        return [
            Text(f"  {row.label}", style=style),
            ProgressBar(total=1.0, completed=row.fraction, width=20),
            Text(f"{done}/{row.num_tasks}", style=style),
            Text(row.shown("score"), style=style),
            Text(row.shown("mean_score"), style=style),
            Text(left, style="red" if self._failed(row) else style),
        ]

    @staticmethod
    def _failed(row: _Row) -> int:
        return sum(job.num_failed for job in row.jobs.values())
