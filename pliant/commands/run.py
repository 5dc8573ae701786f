"""``pliant run``: one stream, one method or several together, many seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import tyro

from pliant.bench.names import unknown
from pliant.commands.base import Command, option
from pliant.commands.values import parse_duration, parse_seeds, parse_settings
from pliant.errors import IllegalConfiguration

if TYPE_CHECKING:
    from pliant.bench.experiment import Experiment

__all__ = ["Run"]

_PARTS = ("stream", "optimizer", "model", "schedule")
_DEFAULT_PRESETS = ("mini", "demo")


@final
@dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Run a method on a stream of tasks with many seeds, and leave a record of each.

    Seeds that have a record are not run again, and an interrupted run goes on where it stopped: repeat the command.
    STREAM is a name from `pliant list streams`, my.module:Class, an experiment file (.toml), or what `pliant tune` has
    written (.json): the setting that it chose.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pliant run random_label_digits --method continual_backprop --seeds 10",
        "pliant run random_label_digits --method redo l2 --set redo.tau=0.1 l2.strength=1e-3 --lr 0.03",
        "pliant run permuted_mnist --preset mini --data-dir ~/mnist --method none --set model.hidden=[200,200]",
        "pliant run permuted_digits --schedule cosine --seeds 10:20 --max-time 2h",
        "pliant run permuted_mnist --preset paper --method continual_backprop --dry-run",
    )
    positional: ClassVar[tuple[str, ...]] = ("stream",)

    stream: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STREAM")]
    """the stream of tasks"""
    method: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD")] = ("none",)
    """the interventions, in the order in which they act; none is plain training"""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, option("KEY=VALUE")] = ()
    """options of the method; stream.KEY, optimizer.KEY, model.KEY or METHOD.KEY says whose it is"""
    preset: Annotated[str | None, option("PRESET")] = None
    """named settings of the stream, see pliant list presets; default: mini or demo, where there is one"""
    seeds: Annotated[str, tyro.conf.arg(metavar="N|A:B|A,B")] = "10"
    """seeds 0 to N-1, or A to B-1, or several of these with commas between; a later run may add more"""
    lr: Annotated[float | None, option("LR")] = None
    """step size of the optimizer"""
    optimizer: Annotated[str | None, option("NAME")] = None
    """an optimizer of torch.optim or pliant.optim, in lower case"""
    schedule: Annotated[str | None, option("NAME")] = None
    """a learning-rate schedule: constant, step, cosine or linear; schedule.over=stream: once, not at each task anew"""
    tasks: Annotated[int | None, option("N")] = None
    """number of tasks"""
    data_dir: Annotated[Path | None, option("FOLDER")] = None
    """folder with the data files of the stream, where it needs any; what is missing is downloaded and checked"""
    workers: Annotated[int | None, option("N")] = None
    """processes, 2 unless given; seeds that can be stacked share one, 0 runs everything in this process"""
    stack: Annotated[int | None, option("N")] = None
    """at most so many seeds that can be stacked share a process; all of them unless given"""
    backend: Annotated[str, tyro.conf.arg(metavar="NAME")] = "local"
    """local, or ray: on the machines of a Ray cluster (RAY_ADDRESS), on all of its CPUs or on --workers of them"""
    max_time: Annotated[str | None, option("TIME")] = None
    """stop after this time, such as 90m or 1.5h, at a task boundary; the same command goes on; exit code 124"""
    dry_run: Annotated[bool, option()] = False
    """run nothing: say how long it will take, and how much memory and disk, from a few seconds of it"""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """results folder; may hold other experiments too"""

    def run(self) -> int:
        """Build the experiment, run it, print its table."""
        from rich.console import Console

        from pliant.commands.execute import Limits, execute, exit_code, records_of, say_how_it_ended
        from pliant.report import terminal_tables

        seeds = parse_seeds(self.seeds)
        max_seconds = None if self.max_time is None else parse_duration("--max-time", self.max_time)
        limits = Limits.of(self.workers, self.backend, self.stack, max_seconds)
        experiment = self.experiment()
        if self.stream.endswith(".json"):
            self._refuse_tuning_seeds(seeds)
        if self.dry_run:
            from pliant.commands.dry_run import show_forecast

            return show_forecast([experiment], seeds, self.out, limits)
        outcome = execute([experiment], seeds, self.out, limits)
        console = Console()
        found = records_of([experiment], self.out)
        if found and not outcome.interrupted:
            console.print(terminal_tables(found))
        say_how_it_ended(outcome, Console(stderr=True))
        if not outcome.interrupted:
            console.print(f"records: {self.out / experiment.id}", soft_wrap=True, highlight=False)
            console.print(f"pliant report {self.out} --out report.html shows them", soft_wrap=True, style="dim")
        return exit_code(outcome)

    def experiment(self) -> Experiment:
        """The experiment that the options describe.

        Raises:
            IllegalConfiguration: something in them does not exist, or has a value that cannot be.
        """
        from pliant.bench.experiment import Experiment
        from pliant.bench.presets import PRESETS

        if self.stream.endswith((".toml", ".json")):
            return self._from_file()
        settings = self._settings()
        stream_options = _laid_over(settings["stream"], self._data_options(), "stream", "--data-dir")
        optimizer = _laid_over(settings["optimizer"], _given(name=self.optimizer), "optimizer", "--optimizer")
        optimizer = _laid_over(optimizer, _given(lr=self.lr), "optimizer", "--lr")
        schedule = _laid_over(settings["schedule"], _given(name=self.schedule), "schedule", "--schedule")
        methods = [(name, settings[name]) for name in self._methods]
        presets = PRESETS.get(self.stream, {})
        preset = self.preset or next((name for name in _DEFAULT_PRESETS if name in presets), None)
        if preset is None:
            fields: dict[str, Any] = {}
            given = {"model": (settings["model"], "mlp"), "optimizer": (optimizer, "sgd")}
            for part, (options, default) in (given | {"schedule": (schedule, "constant")}).items():
                if options:
                    fields[part] = (options.pop("name", default), options)
            if self.tasks is not None:
                fields["num_tasks"] = self.tasks
            return Experiment((self.stream, stream_options), methods, **fields)
        changes: dict[str, Any] = {
            "stream_options": stream_options,
            "optimizer": optimizer,
            "model": settings["model"],
            "schedule": schedule,
        }
        if self.tasks is not None:
            changes["num_tasks"] = self.tasks
        self._check_stream()
        return Experiment.from_preset(self.stream, preset, methods, **changes)

    def _from_file(self) -> Experiment:
        from pliant.bench.experiment import Experiment

        given = (self.set, self.preset, self.lr, self.optimizer, self.tasks, self.schedule)
        if any(value not in (None, ()) for value in given) or self._methods:
            raise IllegalConfiguration(
                f"{self.stream} says what is run: leave out --method, --set, --preset, --lr, --optimizer, --schedule "
                "and --tasks"
            )
        if self.stream.endswith(".json"):
            from pliant.bench.study import read_study

            chosen = read_study(self.stream).chosen
            options = {**chosen.stream.options, **self._data_options(chosen.stream.name)}
            return chosen.replace(stream=(chosen.stream.name, options))
        return Experiment.from_toml(self.stream, **self._data_options(Experiment.from_toml(self.stream).stream.name))

    def _refuse_tuning_seeds(self, seeds: Sequence[int]) -> None:
        """Seeds that chose the settings cannot be reported on."""
        from pliant.bench.study import read_study

        both = sorted(set(seeds) & set(read_study(self.stream).tuning_seeds))
        if both:
            raise IllegalConfiguration(
                f"--seeds {self.seeds}: seed {both[0]} is among those that chose the settings in {self.stream}, and "
                "cannot be reported on; leave those out"
            )

    def given(self) -> frozenset[str]:
        """What the options say a value for, as ``owner.option``."""
        settings = self._settings()
        found = frozenset(f"{owner}.{option}" for owner, options in settings.items() for option in options)
        return found | ({"optimizer.lr"} if self.lr is not None else set())

    @property
    def _methods(self) -> list[str]:
        names = [name for name in self.method if name != "none"]
        if names and len(names) < len(self.method):
            raise IllegalConfiguration(
                f"--method {' '.join(self.method)}: none is plain training, with no method beside"
            )
        if len(set(names)) != len(names):
            raise IllegalConfiguration(f"--method {' '.join(names)}: each method can be given once")
        return names

    def _settings(self) -> dict[str, dict[str, Any]]:
        """The options of ``--set``, by whose they are."""
        owners = [*_PARTS, *self._methods]
        settings: dict[str, dict[str, Any]] = {owner: {} for owner in owners}
        for key, value in parse_settings(text for texts in self.set for text in texts).items():
            owner, dot, option = key.rpartition(".")
            if not dot and len(self._methods) != 1:
                raise IllegalConfiguration(
                    f"--set {key}={value}: say whose option it is, for example {owners[-1]}.{key}={value}; "
                    f"possible: {', '.join(owners)}"
                )
            if dot and owner not in owners:
                raise unknown(f"owner of the option {key}", owner, owners)
            settings[owner or self._methods[0]][option] = value
        return settings

    def _check_stream(self) -> None:
        """A stream that does not exist is said to be that, not one without presets."""
        from pliant.bench.names import resolve
        from pliant.bench.streams import STREAMS

        resolve("stream", self.stream, STREAMS)

    def _data_options(self, stream: str | None = None) -> dict[str, Any]:
        """The ``data_dir`` option; an error where the stream reads no files."""
        from pliant.bench.names import option_names, resolve
        from pliant.bench.streams import STREAMS

        name = stream or self.stream
        if self.data_dir is None:
            return {}
        if "data_dir" not in option_names(resolve("stream", name, STREAMS)):
            raise IllegalConfiguration(f"stream {name} reads no data files: leave out --data-dir")
        return {"data_dir": str(self.data_dir.expanduser())}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _laid_over(settings: dict[str, Any], options: dict[str, Any], owner: str, flag: str) -> dict[str, Any]:
    """Options of ``--set`` with those that have a flag of their own; an error where one is given in both ways."""
    for name, value in options.items():
        if name in settings:
            raise IllegalConfiguration(
                f"{flag} says {owner}.{name}={value}, and --set says {owner}.{name}={settings[name]}: give one of "
                "the two"
            )
    return {**settings, **options}
