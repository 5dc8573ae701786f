"""What ``--dry-run`` says: hours, memory and disk, and whether they are there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pliant.commands.execute import Limits
from pliant.commands.progress import duration

if TYPE_CHECKING:
    from pliant.bench.calibrate import Forecast
    from pliant.bench.experiment import Experiment

__all__ = ["show_forecast"]


def show_forecast(
    experiments: Sequence[Experiment], seeds: Sequence[int], results: Path, limits: Limits, times: int = 1
) -> int:
    """Calibrate each experiment for a few seconds, print what is left of it and what that will take; write nothing.

    Args:
        experiments: What would be run.
        seeds: With which seeds.
        results: The results folder, which need not be there.
        limits: Where and how.
        times: How often the whole would be run: a search runs its experiment once for every trial.

    Raises:
        RecordError: the results folder is damaged, or holds something else.
        IllegalConfiguration: an experiment cannot work.
    """
    from pliant.bench.calibrate import forecast, total_seconds
    from pliant.bench.jobs import survey
    from pliant.bench.memory import gigabytes, total_memory

    plans = [survey(experiment, seeds, results, limits.max_stacked) for experiment in experiments]
    found = [forecast(plan, results) for plan in plans]
    console = Console()
    console.print(_table(found))
    jobs = times * sum(len(item.job_seconds) for item in found)
    if not jobs:
        console.print("nothing is left to do: every seed has its record")
        return 0
    num_workers = min(jobs, max(1, limits.num_workers or 1))
    seconds = total_seconds(list(found) * times, num_workers)
    memory = num_workers * max(item.calibration.memory for item in found if item.calibration)
    disk = times * sum(item.disk for item in found)
    processes = f"{num_workers} process{'es' * (num_workers > 1)}"
    where = "" if limits.backend == "local" else ", on machines as fast as this one"
    console.print(f"time: about {duration(seconds)} with {processes}{where}", highlight=False)
    console.print(f"memory: about {gigabytes(memory)} for {processes}", highlight=False)
    console.print(f"disk: about {gigabytes(disk)}, checkpoints while it runs included", highlight=False)
    warnings = Console(stderr=True, style="yellow")
    at_hand = total_memory()
    if limits.backend == "local" and at_hand is not None and memory > at_hand:
        warnings.print(f"that is more memory than the {gigabytes(at_hand)} at hand: fewer --workers, or --stack")
    free = shutil.disk_usage(_existing(results)).free
    if disk > free:
        warnings.print(f"that is more than the {gigabytes(free)} that are free for {results}")
    return 0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return path


def _table(found: Sequence[Forecast]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "seeds left", "tasks", "steps a task", "a step", "a task", "one process"):
        table.add_column(heading, justify="right" if heading else "left")
    from pliant.bench.memory import gigabytes

    for item in found:
        about = item.calibration
        name = f"{item.experiment.stream.short_name}: {item.experiment.label}"
        if about is None:
            table.add_row(name, "0")
            continue
        table.add_row(
            name,
            str(item.num_seeds),
            str(item.experiment.num_tasks),
            f"{about.num_steps:,.0f}",
            f"{1e6 * about.seconds_per_step:,.0f} µs",
            f"{about.task_seconds:.2f} s",
            gigabytes(about.memory),
        )
    return table
