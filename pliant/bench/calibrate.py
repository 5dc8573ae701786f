r"""What a run will take: hours, memory and disk, from a few seconds of it.

Each experiment is begun in a process of its own, with as many seeds stacked as the run would stack, on tasks that are
cut short; nothing is written to the results folder. With times :math:`t_1, t_2` of tasks of :math:`k_1 < k_2` steps, a
step takes :math:`(t_2-t_1)/(k_2-k_1)` and the rest of :math:`t_1` is what every task costs besides: making its data,
what happens at its boundary, and measuring. Memory is the peak of that process and the whole data of a task, which it
had for one seed only. Disk is what its records and checkpoints, which were written to a temporary folder, would need.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant import records
from pliant.bench import checkpoint
from pliant.bench.environment import run_meta
from pliant.bench.experiment import Experiment
from pliant.bench.jobs import Plan
from pliant.bench.streams.base import Stream, Task
from pliant.bench.trainer import Stopped, Trainer, trainer_of
from pliant.errors import IllegalConfiguration, PliantError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Calibration", "Forecast", "calibrate", "forecast", "total_seconds"]

_FIRST_STEPS = 8
_GROWTH = 4


@dataclass(frozen=True)
class Calibration:
    """What was measured of one experiment.

    Attributes:
        seconds_per_step: Time of one step of all seeds that were stacked.
        seconds_per_task: What a task takes besides its steps.
        num_steps: Steps of one task, mean of the first, the middle and the last.
        memory: Bytes of one process, at its peak.
        checkpoint: Bytes of one checkpoint.
        record: Bytes of one whole record.
    """

    seconds_per_step: float
    seconds_per_task: float
    num_steps: float
    memory: int
    checkpoint: int
    record: int

    @property
    def task_seconds(self) -> float:
        """Time of a whole task."""
        return self.seconds_per_task + self.num_steps * self.seconds_per_step


@dataclass(frozen=True)
class Forecast:
    """What is left of one experiment, and what it will take.

    Attributes:
        experiment: The experiment.
        calibration: What was measured of it; None where nothing is left to do.
        num_seeds: Seeds that are left.
        job_seconds: Time of each of its jobs.
        disk: Bytes of the records to come, and of the checkpoints while it runs (a new one beside the old one).
    """

    experiment: Experiment
    calibration: Calibration | None
    num_seeds: int
    job_seconds: tuple[float, ...]
    disk: int


class _Short:
    """A stream whose tasks end after a number of steps."""

    def __init__(self, stream: Stream, num_tasks: int) -> None:
        self._stream = stream
        self._num_tasks = num_tasks
        self.limit = _FIRST_STEPS
        self.whole = False
        self.num_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def task(self, index: int, seed: int) -> Task:
        """The task, cut to at most ``limit`` steps."""
        task = self._stream.task(index % self._num_tasks, seed)
        self.whole = self.limit >= task.num_steps
        task = task.cut(self.limit)
        self.num_steps = task.num_steps
        return task


def _measure(
    experiments: Sequence[Experiment], seeds: Sequence[int], stacked: bool, budget: float, folder: Path
) -> Calibration:
    """Run shortened tasks until one takes a good part of the budget, and the whole ran as long as that."""
    experiment = experiments[0]
    short = _Short(experiment.build_stream(), experiment.num_tasks)
    times: list[tuple[int, float]] = []
    began = time.monotonic()

    def enough() -> bool:
        if len(times) < 3:  # the first task warms up and is not counted
            return False
        spent = time.monotonic() - began
        return short.whole or spent > budget or (times[-1][1] > budget / 4 and times[-1][0] > times[1][0])

    endless = [item if item.schedule.name == "per_task" else item.replace(num_tasks=10**6) for item in experiments]
    members = trainer_of(experiment)(endless, seeds, folder, stacked=stacked, checkpoint_every=1e9, should_stop=enough)
    whole = [members.stream.task(index, seeds[0]) for index in {0, experiment.num_tasks // 2, experiment.num_tasks - 1}]
    num_steps = sum(task.num_steps for task in whole) / len(whole)
    data = max(task.num_bytes for task in whole)
    del whole
    members.stream = short
    before = 0.0

    def note(state: Trainer) -> None:
        nonlocal before
        times.append((short.num_steps, state.seconds - before))
        before = state.seconds
        if len(times) > 1:
            short.limit *= _GROWTH

    try:
        members.run(note)
        members.save()
    except Stopped:  # which has saved
        pass
    measured = times[1:] or times
    (few, low), (many, high) = measured[0], measured[-1]
    step = max(0.0, high - low) / (many - few) if many > few else high / max(1, many)
    record = records.Record(
        experiment=experiment.to_dict(),
        experiment_id=experiment.id,
        seed=seeds[0],
        series=members.series_of(0),
        meta={**run_meta(), **experiment.about()},
    )
    size = len(records.record_text(record))
    per_task = (size - len(records.record_text(dataclasses.replace(record, series={})))) / max(1, record.num_tasks)
    path = checkpoint.checkpoint_path(folder, members.seeds)
    return Calibration(
        seconds_per_step=step,
        seconds_per_task=max(0.0, high - many * step),
        num_steps=num_steps,
        memory=_peak_memory() + (0 if short.whole else (2 * len(members.seeds) - 1) * data),
        checkpoint=path.stat().st_size if path.exists() else 0,
        record=int(size + per_task * (experiment.num_tasks - record.num_tasks)),
    )


def _peak_memory() -> int:
    """Bytes of this process at their peak; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _child(
    connection: Connection, experiments: Sequence[Experiment], seeds: Sequence[int], stacked: bool, budget: float
) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="pliant-") as folder:
            connection.send(_measure(experiments, seeds, stacked, budget, Path(folder)))
    except PliantError as error:
        connection.send(error)
    except Exception as error:
        connection.send(IllegalConfiguration(f"{experiments[0].label}: {type(error).__name__}: {error}"))


def calibrate(
    experiment: Experiment | Sequence[Experiment], seeds: Sequence[int], *, stacked: bool, budget: float = 4.0
) -> Calibration:
    """Measure an experiment, or several that share a stack, for about ``budget`` seconds, in a process of its own.

    Args:
        experiment: What would be run.
        seeds: The seeds of one job, of each experiment.
        stacked: Whether they are stacked.
        budget: Seconds of computing; one step takes as long as it takes.

    Raises:
        IllegalConfiguration: It fails, or its process is ended, for example because memory is short.
    """
    experiments = (experiment,) if isinstance(experiment, Experiment) else tuple(experiment)
    label = experiments[0].label
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, experiments, tuple(seeds), stacked, budget), daemon=True)
    process.start()
    theirs.close()
    try:
        found = connection.recv()
        process.join(10)  # it has only to clean up behind itself
    except EOFError:
        process.join()
        raise IllegalConfiguration(
            f"{label}: its process ended with exit code {process.exitcode} while it was tried out; "
            "-9 means most often that memory was short"
        ) from None
    finally:
        process.terminate()
        process.join()
        connection.close()
    if isinstance(found, PliantError):
        raise found
    assert isinstance(found, Calibration)
    return found


def forecast(plan: Plan, results: Path, *, budget: float = 4.0) -> Forecast:
    """What the jobs of a plan will take, those with a checkpoint from there on.

    Raises:
        IllegalConfiguration: the experiment fails.
    """
    if not plan.groups:
        return Forecast(plan.experiment, None, 0, (), 0)
    longest = max(plan.groups, key=len)
    found = calibrate(plan.experiment, longest, stacked=plan.stacked or len(longest) > 1, budget=budget)
    folder = results / plan.experiment.id
    seconds = []
    for group in plan.groups:
        state = checkpoint.load_checkpoint(folder, group)
        left = plan.experiment.num_tasks - (0 if state is None else int(state["next_task"]))
        seconds.append(left * found.task_seconds * len(group) / len(longest))
    num_seeds = sum(map(len, plan.groups))
    disk = num_seeds * found.record + 2 * len(plan.groups) * found.checkpoint
    return Forecast(plan.experiment, found, num_seeds, tuple(seconds), disk)


def total_seconds(forecasts: Sequence[Forecast], num_workers: int) -> float:
    """How long all jobs take over so many processes, each of which takes the longest that is left.

    >>> from pliant.bench.calibrate import Forecast
    >>> total_seconds([Forecast(None, None, 3, (5.0, 3.0, 3.0), 0)], 2)
    6.0
    """
    busy = [0.0] * max(1, num_workers)
    for seconds in sorted((job for item in forecasts for job in item.job_seconds), reverse=True):
        busy[busy.index(min(busy))] += seconds
    return max(busy)
