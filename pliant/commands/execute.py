"""What the commands that run something share: check, run with live progress, and say how it ended."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from pliant.commands.progress import Board

if TYPE_CHECKING:
    from pliant.bench.experiment import Experiment
    from pliant.bench.runner import RunReport
    from pliant.records import Record

__all__ = ["Limits", "execute", "exit_code", "records_of", "say_how_it_ended", "terminated_like_interrupted"]

_BACKENDS = ("local", "ray")


@dataclass(frozen=True)
class Limits:
    """Where jobs run, and what they may take.

    Attributes:
        num_workers: Jobs at a time; None: as many as the cluster has CPUs.
        backend: ``"local"`` or ``"ray"``.
        max_stacked: At most so many seeds in a stack.
        max_seconds: Stop after so long.
        max_settings: At most so many experiments in a stack.
    """

    num_workers: int | None = 2
    backend: str = "local"
    max_stacked: int | None = None
    max_seconds: float | None = None
    max_settings: int = 1

    @classmethod
    def of(cls, workers: int | None, backend: str, stack: int | None, max_seconds: float | None) -> Limits:
        """From the options of a command.

        Raises:
            IllegalConfiguration: out of range, or options that contradict each other.
        """
        from pliant.bench.names import unknown
        from pliant.errors import IllegalConfiguration

        if backend not in _BACKENDS:
            raise unknown("backend", backend, _BACKENDS)
        if workers is not None and workers < 0:
            raise IllegalConfiguration(f"--workers {workers}: give 0 or a positive number")
        if workers == 0 and backend == "ray":
            raise IllegalConfiguration("--workers 0 runs everything in this process, --backend ray nothing: give one")
        if stack is not None and stack < 1:
            raise IllegalConfiguration(f"--stack {stack}: give a positive number")
        return cls(2 if workers is None and backend == "local" else workers, backend, stack, max_seconds)


def execute(experiments: Sequence[Experiment], seeds: Sequence[int], results: Path, limits: Limits) -> RunReport:
    """Run what has no record yet, longest first, and draw the progress on stderr.

    Raises:
        RecordError: the results folder holds something else, or something damaged.
        IllegalConfiguration: an experiment that cannot be put together, or data that is not there.
    """
    from pliant.bench.memory import check_memory
    from pliant.bench.runner import run_experiments

    steps = {}
    for experiment in experiments:  # data that is missing or damaged is an error now, not a failed seed later
        check_memory(experiment, 1)
        stream = experiment.build_stream()
        getattr(stream, "prepare", lambda: None)()
        steps[experiment.id] = experiment.num_tasks * stream.task(0, seeds[0]).num_steps
    ordered = sorted(experiments, key=lambda experiment: -steps[experiment.id])
    kept = {experiment.id: len(records_of([experiment], results, seeds)) for experiment in experiments}
    num_workers = len(experiments) if limits.num_workers is None else limits.num_workers
    board = Board(experiments, steps, len(seeds), kept, num_workers, Console(stderr=True))
    with terminated_like_interrupted(), board.shown():
        return run_experiments(
            ordered,
            seeds,
            results,
            num_workers=limits.num_workers,
            backend=limits.backend,
            max_seconds=limits.max_seconds,
            max_stacked=limits.max_stacked,
            max_settings=limits.max_settings,
            on_progress=board.update,
        )


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """A polite end from outside (a batch system, a shutdown) leaves what Ctrl-C leaves."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def records_of(experiments: Sequence[Experiment], results: Path, seeds: Sequence[int] | None = None) -> list[Record]:
    """The records of these experiments, of all seeds that are there or of the given ones.

    Raises:
        RecordError: a record is damaged; names the file and what to do.
    """
    from pliant.records import read_record, read_records, record_path

    if seeds is None:
        folders = [results / experiment.id for experiment in experiments]
        return [record for folder in folders if folder.is_dir() for record in read_records(folder)]
    paths = [record_path(results, experiment.id, seed) for experiment in experiments for seed in seeds]
    return [read_record(path) for path in paths if path.exists()]


def say_how_it_ended(outcome: RunReport, console: Console) -> None:
    """Print what failed and what was interrupted; nothing where all went well."""
    if outcome.interrupted or outcome.out_of_time or outcome.failures:
        console.print(Text(outcome.message, style="red" if outcome.failures else "yellow"), soft_wrap=True)


def exit_code(outcome: RunReport) -> int:
    """130 after Ctrl-C, 124 when the time was up (as of ``timeout``), 1 where a seed failed, else 0."""
    return 130 if outcome.interrupted else 124 if outcome.out_of_time else 1 if outcome.failures else 0
