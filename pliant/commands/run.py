"""``pliant run``: one stream, one method or several together, many seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import tyro

from pliant.bench.names import unknown
from pliant.commands.base import Command, option
from pliant.commands.values import parse_seeds, parse_settings
from pliant.errors import IllegalConfiguration

if TYPE_CHECKING:
    from pliant.bench.experiment import Experiment

__all__ = ["Run"]

_PARTS = ("stream", "optimizer", "model")
_DEFAULT_PRESETS = ("mini", "demo")


@final
@dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Run a method on a stream of tasks with many seeds, and leave a record of each.

    Seeds that have a record are not run again, and an interrupted run goes on where it stopped: repeat the command.
    STREAM is a name from `pliant list streams`, my.module:Class, or an experiment file (.toml).
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pliant run random_label_digits --method continual_backprop --seeds 10",
        "pliant run random_label_digits --method redo l2 --set redo.tau=0.1 l2.strength=1e-3 --lr 0.03",
        "pliant run permuted_mnist --preset mini --data-dir ~/mnist --method none --set model.hidden=[200,200]",
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
    seeds: Annotated[str, tyro.conf.arg(metavar="N|A:B")] = "10"
    """seeds 0 to N-1, or A to B-1; a later run may add more"""
    lr: Annotated[float | None, option("LR")] = None
    """step size of the optimizer"""
    optimizer: Annotated[str | None, option("NAME")] = None
    """an optimizer of torch.optim or pliant.optim, in lower case"""
    tasks: Annotated[int | None, option("N")] = None
    """number of tasks"""
    data_dir: Annotated[Path | None, option("FOLDER")] = None
    """folder with the data files of the stream, where it needs any; what is missing is downloaded and checked"""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 2
    """processes; seeds that can be stacked share one, 0 runs everything in this process"""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """results folder; may hold other experiments too"""

    def run(self) -> int:
        """Build the experiment, run it, print its table."""
        from rich.console import Console

        from pliant.commands.execute import execute, exit_code, records_of, say_how_it_ended
        from pliant.report import terminal_tables

        seeds = parse_seeds(self.seeds)
        if self.workers < 0:
            raise IllegalConfiguration(f"--workers {self.workers}: give 0 or a positive number")
        experiment = self.experiment()
        outcome = execute([experiment], seeds, self.out, self.workers)
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

        if self.stream.endswith(".toml"):
            return self._from_file()
        settings = self._settings()
        stream_options = {**settings["stream"], **self._data_options()}
        optimizer = {**({"name": self.optimizer} if self.optimizer else {}), **settings["optimizer"]}
        if self.lr is not None:
            optimizer["lr"] = self.lr
        methods = [(name, settings[name]) for name in self._methods]
        presets = PRESETS.get(self.stream, {})
        preset = self.preset or next((name for name in _DEFAULT_PRESETS if name in presets), None)
        if preset is None:
            fields: dict[str, Any] = {"model": ("mlp", settings["model"])} if settings["model"] else {}
            if optimizer:
                fields["optimizer"] = (optimizer.pop("name", "sgd"), optimizer)
            if self.tasks is not None:
                fields["num_tasks"] = self.tasks
            return Experiment((self.stream, stream_options), methods, **fields)
        changes: dict[str, Any] = {
            "stream_options": stream_options,
            "optimizer": optimizer,
            "model": settings["model"],
        }
        if self.tasks is not None:
            changes["num_tasks"] = self.tasks
        self._check_stream()
        return Experiment.from_preset(self.stream, preset, methods, **changes)

    def _from_file(self) -> Experiment:
        from pliant.bench.experiment import Experiment

        given = (self.set, self.preset, self.lr, self.optimizer, self.tasks)
        if any(value not in (None, ()) for value in given) or self._methods:
            raise IllegalConfiguration(
                f"{self.stream} says what is run: leave out --method, --set, --preset, --lr, --optimizer and --tasks"
            )
        return Experiment.from_toml(self.stream, **self._data_options(Experiment.from_toml(self.stream).stream.name))

    @property
    def _methods(self) -> list[str]:
        names = [name for name in self.method if name != "none"]
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
