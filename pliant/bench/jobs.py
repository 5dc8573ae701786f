"""What is left to do of experiments, and the jobs that it is cut into."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pliant import records
from pliant.bench import checkpoint
from pliant.bench.engine import can_stack
from pliant.bench.experiment import Experiment
from pliant.bench.memory import check_memory, fitting_members
from pliant.bench.trainer import trainer_of
from pliant.errors import IllegalConfiguration, RecordError

__all__ = [
    "DIVERGED",
    "STACKS",
    "Job",
    "Plan",
    "make_jobs",
    "pending_seeds",
    "plan_jobs",
    "survey",
]

DIVERGED = "diverged"
"""``meta["failure"]`` of a seed that would fail in the same way again; other failures are tried again."""

STACKS = ".stacks"
"""Folder inside a results folder with the checkpoints of jobs that have several experiments, while there are any."""


@dataclass(frozen=True)
class Job:
    """What one process does at a time: some seeds of one experiment, or of several that share a stack.

    Attributes:
        experiments: What is run; each with all of the seeds.
        seeds: The seeds, in order.
        results: The results folder.
        stacked: Whether they are trained as one stacked model.
        checkpoint_every: Seconds between checkpoints.
        deadline: The time (as of ``time.time()``) by which it stops at a task boundary; None: it runs to its end.
    """

    experiments: tuple[Experiment, ...]
    seeds: tuple[int, ...]
    results: str
    stacked: bool
    checkpoint_every: float = 30.0
    deadline: float | None = None

    @property
    def members(self) -> tuple[int, ...]:
        """The seed of each member of its stack; its checkpoint goes by them."""
        return self.seeds * len(self.experiments)

    @property
    def folder(self) -> Path:
        """Where its checkpoint lies: in the experiment's folder, or where those of stacks are."""
        if len(self.experiments) == 1:
            return Path(self.results) / self.experiments[0].id
        return Path(self.results) / STACKS / _digest(self.experiments)

    def alone(self) -> list[Job]:
        """A job for each of its experiments, for when they cannot be run together."""
        return [replace(self, experiments=(experiment,)) for experiment in self.experiments]

    def forget(self) -> None:
        """Delete its checkpoint."""
        checkpoint.remove_checkpoint(self.folder, self.members)
        if len(self.experiments) > 1:
            _remove_empty(self.folder)


@dataclass(frozen=True)
class Plan:
    """What is left of one experiment; nothing is written to make one.

    Attributes:
        experiment: The experiment.
        groups: The seeds that run together, each group in a job of its own.
        stacked: Whether its seeds can be stacked.
        going_on: Those of the groups that have a checkpoint.
        fitting: How many of its members fit into the memory at the very best; None: nobody knows.
    """

    experiment: Experiment
    groups: tuple[tuple[int, ...], ...]
    stacked: bool
    going_on: tuple[tuple[int, ...], ...] = ()
    fitting: int | None = None


def pending_seeds(experiment: Experiment, seeds: Iterable[int], results: Path) -> list[int]:
    """Return the seeds without a final record: a damaged record is an error, a failure that may pass is tried again."""
    pending = []
    for seed in seeds:
        path = records.record_path(results, experiment.id, seed)
        if path.exists():
            record = records.read_record(path)
            if record.status == "complete" or record.meta.get("failure") == DIVERGED:
                continue
        pending.append(seed)
    return pending


def _check_seeds(seeds: Sequence[int]) -> None:
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
        raise IllegalConfiguration(f"seeds must be different and not negative, got {list(seeds)}")


def survey(
    experiment: Experiment, seeds: Sequence[int], results: str | os.PathLike[str], max_stacked: int | None = None
) -> Plan:
    """Find out what is left to do, and that it can be done; seeds with a checkpoint go on together, as they were.

    Args:
        experiment: what is to run.
        seeds: its seeds.
        results: the results folder, which need not be there.
        max_stacked: at most so many seeds in one stack; None: all of them.

    Raises:
        RecordError: the results folder is that of one experiment, holds a different one, or is damaged.
        IllegalConfiguration: seeds that repeat or are negative, an experiment that cannot be put together, or one that
            cannot fit into the memory of this machine.
    """
    _check_seeds(seeds)
    if max_stacked is not None and max_stacked < 1:
        raise IllegalConfiguration(f"at least one seed in a stack, got {max_stacked}")
    root = Path(results)
    if (root / "experiment.json").exists():
        raise RecordError(f"{root} is the folder of one experiment; as results folder, name the one it lies in")
    folder = root / experiment.id
    if (folder / "experiment.json").exists():  # which only compares then
        records.prepare_folder(root, experiment.to_dict(), experiment.id)
    pending = pending_seeds(experiment, seeds, root)
    if not pending:
        return Plan(experiment, (), False)
    # Everything is put together once before anything runs: a wrong setting is an error now, not a failed seed.
    check_memory(experiment, 1)
    stream = experiment.build_stream()
    prepare = getattr(stream, "prepare", None)
    if prepare is not None:
        prepare()
    task = stream.task(0, pending[0])
    check_memory(experiment, 1, task)
    trainer_of(experiment)(experiment, pending[:1], None, stacked=False).close()
    stacked = can_stack(experiment)
    groups: list[tuple[int, ...]] = []
    for group in checkpoint.find_checkpoints(folder):
        # Killed while the records of a finished group were written, some seeds are final; the others go on with them.
        left = pending_seeds(experiment, group, root)
        if left and set(left) <= set(pending) and not any(set(group) & set(other) for other in groups):
            groups.append(group)
    going_on = tuple(sorted(groups))
    rest = [seed for seed in pending if not any(seed in group for group in groups)]
    size = (max_stacked or len(rest)) if stacked else 1
    groups += [tuple(rest[start : start + size]) for start in range(0, len(rest), size)] if rest else []
    check_memory(experiment, max(map(len, groups)), task)
    return Plan(experiment, tuple(sorted(groups)), stacked, going_on, fitting_members(experiment, task))


def make_jobs(
    plan: Plan,
    results: str | os.PathLike[str],
    checkpoint_every: float = 30.0,
    deadline: float | None = None,
) -> list[Job]:
    """Prepare the folder of a plan and return its jobs; a plan with nothing left only tidies up.

    Raises:
        RecordError: the folder cannot be made, or is damaged.
    """
    root = Path(results)
    if plan.groups:
        records.prepare_folder(root, plan.experiment.to_dict(), plan.experiment.id)
    _tidy(plan.experiment, root)
    return [
        Job((plan.experiment,), group, str(root), plan.stacked or len(group) > 1, checkpoint_every, deadline)
        for group in plan.groups
    ]


def plan_jobs(
    experiment: Experiment, seeds: Sequence[int], results: str | os.PathLike[str], checkpoint_every: float = 30.0
) -> list[Job]:
    """Return the jobs that are left to do, their folder prepared: :func:`survey`, then :func:`make_jobs`."""
    return make_jobs(survey(experiment, seeds, results), results, checkpoint_every)


def _tidy(experiment: Experiment, results: Path) -> None:
    """Remove checkpoints whose seeds are all final: killed between the last record and the removal."""
    folder = results / experiment.id
    for group in checkpoint.find_checkpoints(folder):
        if not pending_seeds(experiment, group, results):
            checkpoint.remove_checkpoint(folder, group)


def _digest(experiments: Sequence[Experiment]) -> str:
    return hashlib.sha256("\n".join(experiment.id for experiment in experiments).encode()).hexdigest()[:16]


def _remove_empty(folder: Path) -> None:
    """Remove the folder of a stack, and the one that it lies in, if they are empty."""
    for path in (folder, folder.parent):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
