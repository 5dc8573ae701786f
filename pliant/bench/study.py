"""A search for the settings of one method: the same number of trials for every method, all of them on record.

A study is one file, ``FOLDER/<stream>-<method>-<hash>.json``, beside the records of its trials in ``FOLDER/trials``. It
holds the search space, the budget, the seeds, and for every trial its values, its experiment and its score by the rule
of :mod:`pliant.bench.tune`. Trial 0 is the setting that the search started from; the others are asked of Optuna, a
round of them at a time, or all at once where they are drawn at random; those that can train in one stack do. What is
asked depends on the seed of the study, the number of the trial and the rounds before alone, so that an interrupted
study goes on with the same trials, on any number of processes.

The studies of one folder that are about the same stream are held to one budget: the number of trials, the seeds, the
tasks and the rule must be the same, or the comparison that they serve would not be fair.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant import records, statistics
from pliant.bench.environment import run_meta
from pliant.bench.experiment import NO_METHOD, Experiment
from pliant.bench.runner import Progress, RunReport, run_experiments
from pliant.bench.spaces import apply, domain_from_json, domain_to_json, present
from pliant.bench.streams.base import traits
from pliant.bench.tune import REPORTED_SEEDS, TUNING_SEEDS, check_seeds, rule, score, settings_per_stack
from pliant.errors import IllegalConfiguration, RecordError
from pliant.search import Choice, Domain

__all__ = ["SAMPLERS", "Study", "StudyTrial", "best_of_k", "read_study", "run_study", "study_path"]

SAMPLERS = ("tpe", "random")
VERSION = 1
ROUND_SIZE = 4
"""Trials that a sampler which learns is asked for together, before any of them is told."""


@dataclass(frozen=True)
class StudyTrial:
    """One setting.

    Attributes:
        number: From 0; 0 is the setting that the search started from.
        values: What was searched, by ``owner.option``; periods in tasks where the space has them in tasks.
        experiment_id: Its folder in ``trials``.
        score: By the study's rule; None if a seed failed and the score has no worst value.
        num_failed: Seeds that failed.
    """

    number: int
    values: Mapping[str, Any]
    experiment_id: str
    score: float | None
    num_failed: int


@dataclass(frozen=True)
class Study:
    """What a search has found so far.

    Attributes:
        path: Its file.
        experiment: What was searched: the setting of trial 0, on the stream of the trials.
        target: What the choice is for: the same, or the same methods on another stream.
        space: What was searched, by ``owner.option``.
        num_trials: The budget.
        trials: Those that are done, in order.
        tuning_seeds: The seeds of all trials, none of which may be reported.
        rule: How a score is made, and how the choice.
        lower_is_better: Of the score.
        steps_per_task: Of the stream of the trials, and of the target's.
    """

    path: Path
    experiment: Experiment
    target: Experiment
    space: Mapping[str, Domain]
    num_trials: int
    trials: tuple[StudyTrial, ...]
    tuning_seeds: tuple[int, ...]
    rule: str
    lower_is_better: bool
    steps_per_task: tuple[int, int]

    @property
    def finished(self) -> bool:
        """Whether every trial has been made."""
        return len(self.trials) >= self.num_trials

    @property
    def best(self) -> StudyTrial | None:
        """The best trial, the earlier of two that are equal; None before there is one."""
        return max(self.trials, key=lambda trial: self._merit(trial), default=None)

    @property
    def chosen(self) -> Experiment:
        """The target with the values of the best trial.

        Raises:
            IllegalConfiguration: the study is not finished, so that the choice would have had a smaller budget.
        """
        if not self.finished or self.best is None:
            raise IllegalConfiguration(
                f"{self.path}: {len(self.trials)} of {self.num_trials} trials are done; run the same pliant tune again "
                "first, since the other methods have their whole budget"
            )
        if self.best.number == 0 and self.target == self.experiment:
            return self.target
        return apply(self.target, self.space, self.best.values, self.steps_per_task[1])

    @property
    def curve(self) -> list[float]:
        """The expected score of the best of k of these trials, for k = 1, 2, ...; see :func:`best_of_k`."""
        worst = math.inf if self.lower_is_better else -math.inf
        scores = [worst if trial.score is None else trial.score for trial in self.trials]
        return best_of_k(scores, lower_is_better=self.lower_is_better)

    def _merit(self, trial: StudyTrial) -> float:
        if trial.score is None:
            return -math.inf
        return -trial.score if self.lower_is_better else trial.score


def best_of_k(scores: Sequence[float], *, lower_is_better: bool = False) -> list[float]:
    r"""The expected best of k of these scores, for k = 1 ... n, drawn without replacement.

    With the scores sorted, worst first, :math:`E_k = \sum_{i=k}^{n} \binom{i-1}{k-1} s_i / \binom{n}{k}`: what a budget
    of k trials would have found on average, had they been made in any order. For trials that are drawn independently it
    is unbiased; a sampler that learns makes later trials better than earlier ones, so that the first part of the curve
    is then better than its own first trials were.

    Args:
        scores: One per trial.
        lower_is_better: Of the scores.

    Returns:
        n numbers; the first is the mean, the last the best.

    Source: Dodge et al. (2019), Show Your Work, arXiv:1909.03004, there with replacement; without it as in Tang et al.
        (2020), Showing Your Work Doesn't Always Work, arXiv:2004.13705.

    >>> best_of_k([1.0, 2.0, 6.0])
    [3.0, 4.666666666666667, 6.0]
    >>> best_of_k([1.0, 2.0, 6.0], lower_is_better=True)
    [3.0, 1.3333333333333333, 1.0]
    """
    sign = -1.0 if lower_is_better else 1.0
    return [sign * best.mean for best in statistics.best_of_k([sign * score for score in scores])] if scores else []


def study_path(folder: Path, experiment: Experiment, target: Experiment, setting: Mapping[str, Any]) -> Path:
    """Where the study of these settings lies: its name has a hash of everything but the number of trials."""
    method = "+".join(part.short_name for part in experiment.methods) or NO_METHOD
    about = {"experiment": experiment.to_dict(), "target": target.to_dict(), "setting": setting}
    digest = hashlib.sha256(records.canonical_json(about).encode()).hexdigest()[:12]
    return folder / f"{experiment.stream.short_name}-{method}-{digest}.json"


def read_study(path: str | os.PathLike[str]) -> Study:
    """Read a study's file.

    Raises:
        RecordError: it is missing, damaged, or of another version.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise RecordError(f"{path}: written in version {data['version']}, this pliant reads {VERSION}")
        return Study(
            path=path,
            experiment=Experiment.from_dict(data["experiment"], data["label"]),
            target=Experiment.from_dict(data["target"], data["label"]),
            space={key: domain_from_json(domain) for key, domain in data["setting"]["space"].items()},
            num_trials=int(data["num_trials"]),
            trials=tuple(StudyTrial(**trial) for trial in data["trials"]),
            tuning_seeds=tuple(data["setting"]["tuning_seeds"]),
            rule=data["rule"],
            lower_is_better=bool(data["lower_is_better"]),
            steps_per_task=(int(data["steps_per_task"][0]), int(data["steps_per_task"][1])),
        )
    except OSError as error:
        raise RecordError(f"{path}: this study cannot be read ({error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: this is no study, or a damaged one ({type(error).__name__}: {error}); delete it, and run pliant "
            "tune again: the records of its trials are kept"
        ) from error


def _write(study: Study, setting: Mapping[str, Any]) -> None:
    best = study.best
    data = {
        "version": VERSION,
        "label": study.experiment.label,
        "rule": study.rule,
        "lower_is_better": study.lower_is_better,
        "num_trials": study.num_trials,
        "setting": setting,
        "steps_per_task": list(study.steps_per_task),
        "experiment": study.experiment.to_dict(),
        "target": study.target.to_dict(),
        "best": None if best is None else best.number,
        "chosen": study.chosen.to_dict() if study.finished else None,
        "best_of_k": [value if math.isfinite(value) else None for value in study.curve],
        "trials": [vars(trial) for trial in study.trials],
        "meta": run_meta(),
    }
    records.write_atomically(study.path, json.dumps(data, indent=2) + "\n")


def _check_budget(
    folder: Path, path: Path, experiment: Experiment, num_trials: int, setting: Any, extend: bool
) -> None:
    """Refuse a study whose budget is not that of the others about the same stream in this folder."""
    shared = ("tuning_seeds", "last_fraction", "sampler", "seed", "round_size")
    for other_path in sorted(folder.glob(f"{experiment.stream.short_name}-*.json")):
        if other_path == path:
            continue
        read_study(other_path)  # a damaged one is an error
        data = json.loads(other_path.read_text(encoding="utf-8"))
        name = f"the study {other_path.name} in this folder"
        for key in shared:
            if data["setting"][key] != setting[key]:
                raise IllegalConfiguration(
                    f"{name} has {key} {data['setting'][key]}, this one {setting[key]}: methods are compared at equal "
                    "budgets; use the same, or another folder"
                )
        mine = experiment.to_dict()
        for key in ("stream", "num_tasks"):
            if data["experiment"][key] != json.loads(records.canonical_json({"": mine[key]}))[""]:
                raise IllegalConfiguration(f"{name} has another {key}: use the same for all methods, or another folder")
        if data["num_trials"] != num_trials and not extend:
            raise IllegalConfiguration(
                f"{name} has a budget of {data['num_trials']} trials, this one of {num_trials}: every method needs the "
                "same; give that number, another folder, or --extend to raise the budget of each method in turn"
            )


def run_study(
    experiment: Experiment,
    space: Mapping[str, Domain],
    num_trials: int,
    folder: str | os.PathLike[str],
    *,
    target: Experiment | None = None,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    reported_seeds: Sequence[int] = REPORTED_SEEDS,
    last_fraction: float = 1.0,
    sampler: str = "tpe",
    seed: int = 0,
    extend: bool = False,
    max_seconds: float | None = None,
    run: Callable[[Sequence[Experiment], Sequence[int], Path, float | None], RunReport] | None = None,
    on_round: Callable[[Study], None] = lambda study: None,
) -> tuple[Study, RunReport]:
    """Search the settings of an experiment, or go on with a search.

    Args:
        experiment: The setting to start from; its stream is the one that the trials run on.
        space: What is searched, by ``owner.option``; see :func:`pliant.bench.spaces.default_space`.
        num_trials: The budget, trial 0 included; may be raised in a later call, with ``extend``.
        folder: Where the study's file and the records of its trials lie, also those of other methods.
        target: What the choice is for; default: the experiment. Its methods, optimizer and model must have the
            searched options, too.
        tuning_seeds: The seeds of every trial.
        reported_seeds: Seeds that are reported later; none of them may be a tuning seed.
        last_fraction: The last tasks that count, as a fraction of all.
        sampler: ``"tpe"``, which learns from the rounds before, or ``"random"``.
        seed: Of the sampler.
        extend: Allow a budget that differs from that of other studies in the folder.
        max_seconds: Stop after so long, at a task boundary.
        run: Runs experiments with seeds into a folder within some seconds; default: ``run_experiments`` here, those
            that can in one stack.
        on_round: Called with the study after every round.

    Returns:
        The study, which is not finished after Ctrl-C or at the end of the time, and the report of the last round.

    Raises:
        IllegalConfiguration: Optuna is not installed, a value out of range, seeds that are reported, or a budget that
            is not that of the other studies.
        RecordError: see ``run_experiments``.
    """
    if importlib.util.find_spec("optuna") is None:
        raise IllegalConfiguration("tuning needs Optuna, which is not installed: pip install 'pliant[tune]'")
    if num_trials < 1 or not 0 < last_fraction <= 1 or sampler not in SAMPLERS:
        raise IllegalConfiguration(
            f"a study needs at least one trial, a last_fraction in (0, 1] and a sampler of {', '.join(SAMPLERS)}; got "
            f"{num_trials}, {last_fraction} and {sampler!r}"
        )
    check_seeds(tuning_seeds, reported_seeds)
    root, goal = Path(folder), experiment if target is None else target
    steps = (experiment.build_stream().task(0, tuning_seeds[0]).num_steps, 0)
    steps = (steps[0], steps[0] if goal is experiment else goal.build_stream().task(0, tuning_seeds[0]).num_steps)
    setting = {
        "space": {key: domain_to_json(domain) for key, domain in space.items()},
        "tuning_seeds": list(tuning_seeds),
        "last_fraction": last_fraction,
        "sampler": sampler,
        "seed": seed,
        "round_size": ROUND_SIZE,
    }
    path = study_path(root, experiment, goal, setting)
    _check_budget(root, path, experiment, num_trials, setting, extend)
    done = read_study(path).trials if path.exists() else ()
    lower = traits(experiment.build_stream()).lower_is_better
    text = rule(experiment, last_fraction)

    def made(trials: Sequence[StudyTrial]) -> Study:
        budget = max(num_trials, len(trials))
        return Study(path, experiment, goal, space, budget, tuple(trials), tuple(tuning_seeds), text, lower, steps)

    started = time.monotonic()
    study, report = made(done), RunReport(str(root / "trials"))
    while not study.finished:
        numbers = range(len(study.trials), _end_of_round(len(study.trials), num_trials, sampler))
        asked = _ask(study, numbers, sampler, seed)
        experiments = [experiment if values is None else apply(experiment, space, values, steps[0]) for values in asked]
        left = None if max_seconds is None else max(1e-3, max_seconds - (time.monotonic() - started))
        report = (run or _run_here)(experiments, tuning_seeds, root / "trials", left)
        if report.interrupted or report.out_of_time:
            break
        trials = list(study.trials)
        for number, values, setting_run in zip(numbers, asked, experiments, strict=True):
            found = score(setting_run, tuning_seeds, root / "trials", last_fraction)
            known = present(experiment, space, steps[0]) or {} if values is None else values
            value = found.score if math.isfinite(found.score) else None
            trials.append(StudyTrial(number, known, setting_run.id, value, found.num_failed))
        study = made(trials)
        _write(study, setting)
        on_round(study)
    return study, report


def _end_of_round(num_done: int, num_trials: int, sampler: str) -> int:
    """The first trial that is not asked for yet: at random, none depends on another, and all are asked for at once."""
    return num_trials if sampler == "random" else min(num_trials, (num_done // ROUND_SIZE + 1) * ROUND_SIZE)


def _run_here(
    experiments: Sequence[Experiment], seeds: Sequence[int], results: Path, max_seconds: float | None
) -> RunReport:
    def ignore(progress: Progress) -> None:
        pass

    return run_experiments(
        experiments,
        seeds,
        results,
        num_workers=0,
        max_seconds=max_seconds,
        max_settings=settings_per_stack(len(experiments), len(seeds)),
        on_progress=ignore,
    )


# -- Optuna --------------------------------------------------------------------------------------------------------


def _distribution(domain: Domain) -> Any:
    optuna: Any = importlib.import_module("optuna")
    if isinstance(domain, Choice):  # by position: any value may be one
        return optuna.distributions.CategoricalDistribution(tuple(range(len(domain.values))))
    if domain.integer:
        return optuna.distributions.IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return optuna.distributions.FloatDistribution(float(domain.low), float(domain.high), log=domain.log)


def _ask(study: Study, numbers: Sequence[int], name: str, seed: int) -> list[dict[str, Any] | None]:
    """The values of the next trials; None stands for the setting that the search started from."""
    optuna: Any = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(domain) for key, domain in study.space.items()}
    direction = "minimize" if study.lower_is_better else "maximize"
    memory = optuna.create_study(direction=direction)
    worst = math.inf if study.lower_is_better else -math.inf
    for trial in study.trials:
        if trial.values:  # a starting point outside of the space teaches nothing about it
            memory.add_trial(
                optuna.trial.create_trial(
                    params={key: _encode(study.space[key], value) for key, value in trial.values.items()},
                    distributions=distributions,
                    value=worst if trial.score is None else trial.score,
                )
            )
    taken = {json.dumps(dict(trial.values), sort_keys=True) for trial in study.trials}
    asked: list[dict[str, Any] | None] = []
    for number in numbers:
        if number == 0:
            asked.append(None)
            start = present(study.experiment, study.space, study.steps_per_task[0])
            taken.add(json.dumps(start, sort_keys=True))
            continue
        for attempt in range(50):  # the same setting once more would be a smaller budget than it looks
            memory.sampler = _sampler(optuna, name, seed, number, attempt)
            params = memory.ask(distributions).params
            values = {key: _decode(domain, params[key]) for key, domain in study.space.items()}
            if json.dumps(values, sort_keys=True) not in taken:
                break
        taken.add(json.dumps(values, sort_keys=True))
        asked.append(values)
    return asked


def _sampler(optuna: Any, name: str, *numbers: int) -> Any:
    """A sampler that depends on these numbers alone, and on what it has been told."""
    seed = int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:4], "little")
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():  # Optuna 4.0 calls both experimental; they have stayed as they are since
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _encode(domain: Domain, value: Any) -> Any:
    if isinstance(domain, Choice):
        return [repr(item) for item in domain.values].index(repr(value))
    return int(value) if domain.integer else float(value)


def _decode(domain: Domain, value: Any) -> Any:
    return domain.values[value] if isinstance(domain, Choice) else value
