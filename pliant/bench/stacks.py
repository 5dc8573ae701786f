"""Settings of one way of training that share a stack: which do, and where they go on after an interruption."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pliant import records
from pliant.bench import checkpoint
from pliant.bench.cohorts import check_together
from pliant.bench.experiment import Experiment
from pliant.bench.jobs import STACKS, Job, Plan, pending_seeds, survey
from pliant.errors import IllegalConfiguration, NotYetSupported

__all__ = ["Stack", "find_stacks", "make_stack", "survey_all", "tidy_stacks"]

_MEMORY_SHARE = 0.25
"""Of the memory: what weights, gradients and data of stacked settings may take; they are not all that is needed."""


@dataclass(frozen=True)
class Stack:
    """Experiments that are to share a stack, each with all of the seeds."""

    experiments: tuple[Experiment, ...]
    seeds: tuple[int, ...]


def survey_all(
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    results: str | os.PathLike[str],
    max_stacked: int | None = None,
    max_settings: int = 1,
) -> tuple[list[Plan], list[Stack]]:
    """:func:`survey` of several experiments, those that can share a stack put together.

    Experiments that were stopped in one stack go on in it. The others share one if they differ in numbers only: the
    same optimizer and the same methods, with other options. Which ones depends on the order and on ``max_settings``
    alone, so that a run that was killed before its first checkpoint begins again with the same stacks.

    Args:
        experiments: what is to run, each once.
        seeds: of every experiment.
        results: the results folder, which need not be there.
        max_stacked: at most so many seeds of one experiment in a stack; None: all of them.
        max_settings: at most so many experiments in one; fewer where memory is short.

    Raises:
        RecordError: see :func:`survey`.
        IllegalConfiguration: see :func:`survey`.
    """
    if max_settings < 1:
        raise IllegalConfiguration(f"at least one setting in a stack, got {max_settings}")
    root = Path(results)
    stacks = list(_going_on(experiments, seeds, root))
    plans = []
    for experiment in experiments:
        taken = {seed for stack in stacks if experiment in stack.experiments for seed in stack.seeds}
        plans.append(survey(experiment, [seed for seed in seeds if seed not in taken], root, max_stacked))
    shared = _share(plans, max_settings)
    used = {(experiment, stack.seeds) for stack in shared for experiment in stack.experiments}
    left = [
        replace(plan, groups=tuple(group for group in plan.groups if (plan.experiment, group) not in used))
        for plan in plans
    ]
    return left, stacks + shared


def _going_on(experiments: Sequence[Experiment], seeds: Sequence[int], results: Path) -> Iterator[Stack]:
    """The stacks that were stopped, and of which everything that is left is wanted now."""
    wanted = {experiment.id: experiment for experiment in experiments}
    taken: set[tuple[str, int]] = set()
    for stack in find_stacks(results):
        left = {(item.id, seed) for item in stack.experiments for seed in pending_seeds(item, stack.seeds, results)}
        if left and not left & taken and all(name in wanted and seed in seeds for name, seed in left):
            taken |= {(item.id, seed) for item in stack.experiments for seed in stack.seeds}
            yield Stack(tuple(wanted.get(item.id, item) for item in stack.experiments), stack.seeds)


def find_stacks(results: Path) -> list[Stack]:
    """The stacks of several experiments that have a checkpoint.

    Raises:
        RecordError: a file is damaged.
    """
    found = []
    for folder in sorted((results / STACKS).glob("*")):
        for members, state in checkpoint.read_checkpoints(folder):
            # One that cannot be put together here (a method of somebody's own) is none of those that are to run now.
            with contextlib.suppress(IllegalConfiguration):
                stacked = tuple(Experiment.from_dict(config) for config in checkpoint.experiments_of(state))
                found.append(Stack(stacked, members[: len(members) // len(stacked)]))
    return found


def tidy_stacks(results: str | os.PathLike[str]) -> None:
    """Remove the checkpoints of stacks whose seeds are all final: killed between the last record and the removal."""
    root = Path(results)
    for stack in find_stacks(root):
        if not any(pending_seeds(item, stack.seeds, root) for item in stack.experiments):
            Job(stack.experiments, stack.seeds, str(root), True).forget()


def _share(plans: Sequence[Plan], max_settings: int) -> list[Stack]:
    """Put together what can share a stack: greedily and in order, full stacks first."""
    stacks: list[Stack] = []
    open_stacks: dict[tuple[object, ...], int] = {}
    for plan in plans if max_settings > 1 else []:
        for group in plan.groups:
            if not plan.stacked or group in plan.going_on:
                continue
            experiment = plan.experiment
            kind = (experiment.optimizer.name, tuple(part.name for part in experiment.methods), group)
            fits = max_settings
            if plan.fitting is not None:
                fits = min(fits, int(_MEMORY_SHARE * plan.fitting) // len(group))
            place = open_stacks.get(kind)
            if place is not None and len(stacks[place].experiments) < fits and _go_together(stacks[place], experiment):
                stacks[place] = Stack((*stacks[place].experiments, experiment), group)
            else:
                open_stacks[kind] = len(stacks)
                stacks.append(Stack((experiment,), group))
    return [stack for stack in stacks if len(stack.experiments) > 1]


def _go_together(stack: Stack, experiment: Experiment) -> bool:
    try:
        check_together([stack.experiments[0], experiment])
    except (IllegalConfiguration, NotYetSupported):
        return False
    return True


def make_stack(
    stack: Stack,
    results: str | os.PathLike[str],
    checkpoint_every: float = 30.0,
    deadline: float | None = None,
) -> Job:
    """Prepare the folders of the experiments of a stack and return its job.

    Raises:
        RecordError: a folder cannot be made, or is damaged.
    """
    for experiment in stack.experiments:
        records.prepare_folder(results, experiment.to_dict(), experiment.id)
    return Job(stack.experiments, stack.seeds, str(results), True, checkpoint_every, deadline)
