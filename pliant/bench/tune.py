"""Tuning with equal budgets: every method gets its best of the same number of settings, on seeds of its own.

The rule, stated once: a setting's score is the online accuracy, averaged over the last tasks (a given fraction of
them, by default the last half) and over the tuning seeds; a seed that failed counts as 0. The highest score is chosen,
the earlier setting where two are equal. The reported seeds are never among the tuning seeds.

The fraction is a choice with consequences. Where every useful step size loses its plasticity, the last half rewards
step sizes so small that the network hardly learns at all; the whole stream (fraction 1) rewards learning.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant import records
from pliant.bench.environment import run_meta
from pliant.bench.experiment import Experiment, Part
from pliant.bench.runner import Progress, run_experiments
from pliant.bench.streams.base import traits
from pliant.errors import IllegalConfiguration

__all__ = [
    "REPORTED_SEEDS",
    "RULE",
    "SUMMARY",
    "TUNING_SEEDS",
    "Trial",
    "Tuning",
    "check_seeds",
    "grid",
    "rule",
    "score",
    "settings_per_stack",
    "variations",
]

TUNING_SEEDS: tuple[int, ...] = tuple(range(100, 105))
REPORTED_SEEDS: tuple[int, ...] = tuple(range(10))
SUMMARY = "tuning.json"
STACK_MEMBERS = 32
"""Members of a stack of settings, at most: what more of them would save is little, and the cache holds no more."""

RULE = (
    "highest online accuracy, averaged over the last {num_scored} of {num_tasks} tasks and over the tuning seeds; a "
    "failed seed counts as 0; the earlier setting wins a tie"
)


@dataclass(frozen=True)
class Trial:
    """One setting of one method: its experiment, the score, and how many of its seeds failed.

    Attributes:
        experiment: The setting.
        score: By :data:`RULE`; infinite where a seed failed and there is no worst score.
        num_failed: Seeds that failed.
        lower_is_better: Whether the stream's score is one of those.
    """

    experiment: Experiment
    score: float
    num_failed: int
    lower_is_better: bool = False

    @property
    def merit(self) -> float:
        """The score, such that more is better."""
        return -self.score if self.lower_is_better else self.score


@dataclass(frozen=True)
class Tuning:
    """All trials by method, in the order of the grid, and the file that says so."""

    trials: Mapping[str, tuple[Trial, ...]]
    rule: str
    path: Path

    @property
    def chosen(self) -> dict[str, Experiment]:
        """The best setting of every method."""
        return {name: max(trials, key=lambda trial: trial.merit).experiment for name, trials in self.trials.items()}


def variations(
    experiment: Experiment,
    optimizer: Mapping[str, Sequence[Any]] | None = None,
    methods: Sequence[Mapping[str, Sequence[Any]]] = (),
) -> list[Experiment]:
    """Return the grid of all combinations of the given option values.

    Args:
        experiment: what is varied.
        optimizer: option name to values.
        methods: per intervention of the experiment, in order: option name to values.

    >>> plain = Experiment("random_label_digits", num_tasks=2)
    >>> [trial.optimizer.options["lr"] for trial in variations(plain, {"lr": [0.03, 0.1]})]
    [0.03, 0.1]
    """
    if len(methods) > len(experiment.methods):
        raise IllegalConfiguration(f"{experiment.label}: values for {len(methods)} methods, it has fewer")
    axes: list[tuple[int | None, str, Sequence[Any]]] = [
        (None, key, values) for key, values in (optimizer or {}).items()
    ]
    axes += [(k, key, values) for k, options in enumerate(methods) for key, values in options.items()]
    found = []
    for combination in itertools.product(*(values for _, _, values in axes)):
        tuned = Part(experiment.optimizer.name, dict(experiment.optimizer.options))
        parts = [Part(part.name, dict(part.options)) for part in experiment.methods]
        for (position, key, _), value in zip(axes, combination, strict=True):
            old = tuned if position is None else parts[position]
            new = Part(old.name, {**old.options, key: value})
            if position is None:
                tuned = new
            else:
                parts[position] = new
        found.append(experiment.replace(optimizer=tuned, methods=tuple(parts)))
    return found


def check_seeds(tuning_seeds: Sequence[int], reported_seeds: Sequence[int]) -> None:
    """Refuse seeds that would be chosen on and reported.

    Raises:
        IllegalConfiguration: some are both, or there are no tuning seeds.
    """
    both = sorted(set(tuning_seeds) & set(reported_seeds))
    if both or not tuning_seeds:
        raise IllegalConfiguration(f"tuning seeds must exist and not be reported ones; both have {both}")


def settings_per_stack(num_settings: int, num_seeds: int) -> int:
    """How many settings of one way of training share a stack: at most half of them, so that two processes have work.

    It does not ask how many processes there are, so that the trials are the same bits on any number of them.

    >>> settings_per_stack(4, 5), settings_per_stack(50, 5), settings_per_stack(50, 40)
    (2, 6, 1)
    """
    return max(1, min(STACK_MEMBERS // max(1, num_seeds), -(-num_settings // 2)))


def num_scored(num_tasks: int, last_fraction: float) -> int:
    """How many of the last tasks count."""
    return math.ceil(num_tasks * last_fraction)


def score(experiment: Experiment, seeds: Sequence[int], results: Path, last_fraction: float) -> Trial:
    """The score of an experiment that was run with all of these seeds.

    Raises:
        RecordError: a record is missing or damaged.
    """
    about = traits(experiment.build_stream())
    lower = about.lower_is_better
    values, num_failed = [], 0
    for seed in seeds:
        record = records.read_record(records.record_path(results, experiment.id, seed))
        if record.status != "complete":
            num_failed += 1
            values.append(about.worst)
            continue
        scored = list(record.series[about.series])[-num_scored(experiment.num_tasks, last_fraction) :]
        values.append(sum(scored) / len(scored))
    return Trial(experiment, sum(values) / len(values), num_failed, lower)


def rule(experiment: Experiment, last_fraction: float) -> str:
    """:data:`RULE` for one experiment, in words."""
    text = RULE.format(num_scored=num_scored(experiment.num_tasks, last_fraction), num_tasks=experiment.num_tasks)
    about = traits(experiment.build_stream())
    text = text.replace("accuracy", about.score)
    if about.lower_is_better:
        text = text.replace("highest", "lowest")
    if math.isinf(about.worst):
        text = text.replace("counts as 0", "makes its setting the last")
    return text


def grid(
    settings: Mapping[str, Sequence[Experiment]],
    results: str | os.PathLike[str],
    *,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    reported_seeds: Sequence[int] = REPORTED_SEEDS,
    last_fraction: float = 0.5,
    num_workers: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    checkpoint_every: float = 30.0,
    max_settings: int | None = None,
    max_seconds: float | None = None,
) -> Tuning | None:
    """Run every setting of every method on the tuning seeds and choose the best of each method by :data:`RULE`.

    All trials stay as records in ``results``, and ``results/tuning.json`` lists them with their scores, the rule and
    the choice. Interrupted, it resumes like every run.

    Args:
        settings: method name to its settings; the same number for every method, plain training included.
        results: results folder for the trials.
        tuning_seeds: seeds to choose on.
        reported_seeds: seeds that are reported later; none of them may be a tuning seed.
        last_fraction: the last tasks over which accuracy is averaged, as a fraction of all, in (0, 1].
        num_workers: worker processes, see ``run_experiments``.
        on_progress: called after every task of every trial.
        checkpoint_every: seconds between checkpoints.
        max_settings: at most so many settings of a method share a stack; None: :func:`settings_per_stack`.
        max_seconds: stop after so long, at a task boundary.

    Returns:
        The trials and choices, or None after Ctrl-C or at the end of the time.

    Raises:
        IllegalConfiguration: methods with different numbers of settings, a setting that occurs twice, or tuning
            seeds that are reported.
        RecordError: see ``run_experiments``.
    """
    sizes = {name: len(experiments) for name, experiments in settings.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise IllegalConfiguration(f"every method needs the same number of settings, at least one; got {sizes}")
    for name, experiments in settings.items():
        if len(set(experiments)) != len(experiments):
            raise IllegalConfiguration(f"{name}: a setting occurs twice, which would be a smaller budget than it looks")
    everything = [experiment for experiments in settings.values() for experiment in experiments]
    lengths = {experiment.num_tasks for experiment in everything}
    if len(lengths) != 1 or not 0 < last_fraction <= 1:
        raise IllegalConfiguration(
            f"settings are compared over one number of tasks and a last_fraction in (0, 1]; got {sorted(lengths)} "
            f"tasks and {last_fraction}"
        )
    check_seeds(tuning_seeds, reported_seeds)
    report = run_experiments(
        everything,
        tuning_seeds,
        results,
        num_workers=num_workers,
        on_progress=on_progress,
        checkpoint_every=checkpoint_every,
        max_settings=settings_per_stack(len(everything) // len(settings), len(tuning_seeds))
        if max_settings is None
        else max_settings,
        max_seconds=max_seconds,
    )
    if report.interrupted or report.out_of_time:
        return None
    root = Path(results)
    trials = {
        name: tuple(score(experiment, tuning_seeds, root, last_fraction) for experiment in experiments)
        for name, experiments in settings.items()
    }
    tuning = Tuning(trials, rule(everything[0], last_fraction), root / SUMMARY)
    _write_summary(tuning, tuning_seeds)
    return tuning


def _write_summary(tuning: Tuning, seeds: Sequence[int]) -> None:
    chosen = tuning.chosen
    summary = {
        "rule": tuning.rule,
        "tuning_seeds": list(seeds),
        "num_settings": len(next(iter(tuning.trials.values()))),
        "methods": {
            name: {
                "chosen": chosen[name].id,
                "experiment": chosen[name].to_dict(),
                "trials": [
                    {
                        "id": trial.experiment.id,
                        "optimizer": trial.experiment.to_dict()["optimizer"],
                        "methods": trial.experiment.to_dict()["methods"],
                        "score": trial.score if math.isfinite(trial.score) else None,
                        "num_failed": trial.num_failed,
                    }
                    for trial in trials
                ],
            }
            for name, trials in tuning.trials.items()
        },
        "meta": run_meta(),
    }
    records.write_atomically(tuning.path, json.dumps(summary, indent=2) + "\n")
