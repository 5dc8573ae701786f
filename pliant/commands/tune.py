"""``pliant tune``: the settings of a method, searched with a budget that is the same for every method."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import tyro

from pliant.bench.names import unknown
from pliant.commands.base import Command, option
from pliant.commands.execute import Limits
from pliant.commands.run import Run
from pliant.commands.values import parse_duration, parse_seeds
from pliant.errors import IllegalConfiguration

if TYPE_CHECKING:
    from rich.console import Console

    from pliant.bench.experiment import Experiment
    from pliant.bench.runner import RunReport
    from pliant.bench.study import Study
    from pliant.search import Domain

__all__ = ["Tune"]

_SAMPLERS = ("tpe", "random")


@final
@dataclass(frozen=True, kw_only=True)
class Tune(Command):
    """Search good settings for a method on a stream, on seeds that are never reported.

    Every method in one folder has the same number of trials, seeds and tasks. What is searched is what the method and
    its optimizer declare; --set gives a value instead, --search another range. All trials stay on record, an
    interrupted search goes on where it stopped, and `pliant run FOLDER/NAME.json` runs what was chosen.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pliant tune random_label_digits --method continual_backprop --trials 50",
        "pliant tune random_label_digits --method none --trials 50 --search lr=log:1e-3:0.3",
        "pliant tune permuted_mnist --tune-on permuted_digits --method continual_backprop --trials 20 "
        "--set maturity_threshold=100 --search replacement_rate=log:1e-6:1e-2",
    )
    positional: ClassVar[tuple[str, ...]] = ("stream",)

    stream: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STREAM")]
    """the stream that the choice is for"""
    method: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD")] = ("none",)
    """the interventions, in the order in which they act; none is plain training"""
    trials: Annotated[int, tyro.conf.arg(metavar="N")] = 20
    """settings that are tried, the one that the search starts from included"""
    search: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, option("KEY=RANGE")] = ()
    """search an option within LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH, log:task:LOW:HIGH (in tasks) or among [A,B]"""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, option("KEY=VALUE")] = ()
    """options that all trials share, as for pliant run; what is set is not searched"""
    preset: Annotated[str | None, option("PRESET")] = None
    """named settings of the stream, see pliant list presets; default: mini or demo, where there is one"""
    tune_on: Annotated[str | None, option("STREAM")] = None
    """run the trials on another stream, with its preset; the values are then taken over to STREAM"""
    seeds: Annotated[str, tyro.conf.arg(metavar="A:B")] = "100:105"
    """the tuning seeds; they cannot be reported"""
    lr: Annotated[float | None, option("LR")] = None
    """step size of the optimizer, which is then not searched"""
    optimizer: Annotated[str | None, option("NAME")] = None
    """an optimizer of torch.optim or pliant.optim, in lower case"""
    schedule: Annotated[str | None, option("NAME")] = None
    """a learning-rate schedule: constant, step, cosine or linear"""
    tasks: Annotated[int | None, option("N")] = None
    """number of tasks of a trial"""
    last_fraction: Annotated[float, tyro.conf.arg(metavar="X")] = 1.0
    """the score is the mean over the last tasks, this share of all"""
    sampler: Annotated[str, tyro.conf.arg(metavar="NAME")] = "tpe"
    """tpe, which learns from the trials before, or random"""
    sampler_seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """its seed; another one is another search"""
    extend: Annotated[bool, option()] = False
    """raise the budget of a folder: the other methods follow with the same option"""
    data_dir: Annotated[Path | None, option("FOLDER")] = None
    """folder with the data files of the stream, where it needs any"""
    workers: Annotated[int | None, option("N")] = None
    """processes, 2 unless given; 0 runs everything in this process"""
    stack: Annotated[int | None, option("N")] = None
    """at most so many seeds, of one setting or several, are trained as one model"""
    backend: Annotated[str, tyro.conf.arg(metavar="NAME")] = "local"
    """local, or ray: on the machines of a Ray cluster"""
    max_time: Annotated[str | None, option("TIME")] = None
    """stop after this time, such as 90m or 1.5h; the same command goes on; exit code 124"""
    dry_run: Annotated[bool, option()] = False
    """run nothing: print what would be searched, how long it will take, and how much memory and disk"""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("tuning")
    """folder of the search and the records of its trials; may hold those of other methods"""

    def run(self) -> int:
        """Search, and print what was found."""
        from rich.console import Console

        from pliant.bench.study import run_study
        from pliant.bench.tune import REPORTED_SEEDS, settings_per_stack
        from pliant.commands.execute import execute, exit_code, say_how_it_ended

        seeds = parse_seeds(self.seeds)
        max_seconds = None if self.max_time is None else parse_duration("--max-time", self.max_time)
        limits = Limits.of(self.workers, self.backend, self.stack, max_seconds)
        self._check(seeds, REPORTED_SEEDS)
        target = self._command(self.stream, self.preset).experiment()
        experiment = target if self.tune_on is None else self._trials_on(target)
        space = self._space(target)
        console, errors = Console(), Console(stderr=True)
        if self.dry_run:
            return self._forecast(console, experiment, space, seeds, limits)
        progress = _Told(self.trials, errors)

        def runs(
            experiments: Sequence[Experiment], seeds: Sequence[int], results: Path, seconds: float | None
        ) -> RunReport:
            several = settings_per_stack(len(experiments), len(seeds))
            if limits.max_stacked is not None:
                several = max(1, min(several, limits.max_stacked // len(seeds)))
            left = replace(limits, max_seconds=seconds, max_settings=several)
            return execute(list(dict.fromkeys(experiments)), seeds, results, left)

        study, report = run_study(
            experiment,
            space,
            self.trials,
            self.out,
            target=target,
            tuning_seeds=seeds,
            reported_seeds=REPORTED_SEEDS,
            last_fraction=self.last_fraction,
            sampler=self.sampler,
            seed=self.sampler_seed,
            extend=self.extend,
            max_seconds=max_seconds,
            run=runs,
            on_round=progress.tell,
        )
        if not study.finished:
            say_how_it_ended(report, errors)
            return exit_code(report)
        _print_study(study, console)
        return 0

    def _check(self, seeds: Sequence[int], reported: Sequence[int]) -> None:
        if set(seeds) & set(reported):
            raise IllegalConfiguration(
                f"--seeds {self.seeds}: seeds {reported[0]} to {reported[-1]} are those that are reported; tune on "
                "others"
            )
        if self.trials < 1:
            raise IllegalConfiguration(f"--trials {self.trials}: give a positive number")
        if not 0 < self.last_fraction <= 1:
            raise IllegalConfiguration(f"--last-fraction {self.last_fraction}: give a number in (0, 1]")
        if self.sampler not in _SAMPLERS:
            raise unknown("sampler", self.sampler, _SAMPLERS)

    def _command(self, stream: str, preset: str | None, **changes: Any) -> Run:
        """The ``pliant run`` with these options: it knows what they mean."""
        if stream.endswith((".toml", ".json")):
            raise IllegalConfiguration(f"{stream}: name the stream itself, and what is fixed with --set")
        options = {
            "set": self.set,
            "lr": self.lr,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "tasks": self.tasks if self.tune_on is None else None,
            "data_dir": self.data_dir,
        }
        return Run(stream=stream, method=self.method, preset=preset, **{**options, **changes})

    def _trials_on(self, target: Experiment) -> Experiment:
        """The methods, the optimizer and the schedule of the target on the stream of the trials."""
        assert self.tune_on is not None
        base = Run(stream=self.tune_on, tasks=self.tasks).experiment()
        return base.replace(
            methods=target.methods,
            optimizer=target.optimizer if self.optimizer else base.optimizer,
            schedule=target.schedule,
            label=target.label,
        )

    def _space(self, experiment: Experiment) -> dict[str, Domain]:
        from pliant.bench.spaces import parse_domain, with_overrides

        searched = {}
        for text in (text for texts in self.search for text in texts):
            key, equals, value = (part.strip() for part in text.partition("="))
            if not equals or not key or not value:
                raise IllegalConfiguration(f"--search {text}: write KEY=RANGE, for example --search lr=log:1e-3:0.3")
            if key in searched:
                raise IllegalConfiguration(f"--search {text}: {key} is searched twice")
            searched[key] = parse_domain(key, value)
        return with_overrides(experiment, searched, self._command(self.stream, self.preset).given())

    def _forecast(
        self, console: Console, experiment: Experiment, space: dict[str, Domain], seeds: Sequence[int], limits: Limits
    ) -> int:
        from pliant.commands.dry_run import show_forecast

        for key, domain in space.items():
            console.print(f"{key}: {domain}", highlight=False, soft_wrap=True)
        console.print("every trial by itself; those that share a stack take less:")
        return show_forecast([experiment], seeds, self.out / "trials", limits, times=self.trials)


class _Told:
    """A line after every round of a search, with the time that is left."""

    def __init__(self, num_trials: int, console: Console) -> None:
        self.num_trials = num_trials
        self.console = console
        self.last = time.monotonic()

    def tell(self, study: Study) -> None:
        """A round is done."""
        from pliant.bench.study import ROUND_SIZE
        from pliant.commands.progress import duration

        done, best, now = len(study.trials), study.best, time.monotonic()
        each, self.last = (now - self.last) / ROUND_SIZE, now
        left = "" if study.finished else f", about {duration(each * (self.num_trials - done))} left"
        score = "failed" if best is None or best.score is None else f"{best.score:.4g}"
        self.console.print(f"{done} of {self.num_trials} trials, best {score}{left}", highlight=False, soft_wrap=True)


def _print_study(study: Study, console: Console) -> None:
    """The choice, what it was chosen from, and what to do with it."""
    best = study.best
    assert best is not None
    values = [f"{key}={_short(value)}" for key, value in best.values.items()]
    chosen = ", ".join(values) or "the setting it started from"
    lines = [f"best of {len(study.trials)} trials: number {best.number}, {chosen}"]
    curve = study.curve
    marks = sorted({1, 5, 10, 20, 50, 100, len(curve)} & set(range(1, len(curve) + 1)))
    lines.append("score to expect of the best of k trials: " + ", ".join(f"{k}: {curve[k - 1]:.4g}" for k in marks))
    lines.append(f"all trials: {study.path}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"pliant run {study.path} --seeds 10 runs it on other seeds", soft_wrap=True, style="dim")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
