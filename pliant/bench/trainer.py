"""What goes through the tasks of an experiment, whatever a task is: its checkpoints, its series, and how it stops."""

from __future__ import annotations

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pliant import records
from pliant.bench import checkpoint
from pliant.bench.experiment import Experiment
from pliant.bench.memory import return_freed
from pliant.bench.names import resolve
from pliant.bench.streams import STREAMS
from pliant.bench.streams.base import Stream, traits
from pliant.errors import RecordError

__all__ = ["Failure", "Stopped", "Trainer", "trainer_of"]

_TRIM_EVERY = 2.0
"""Seconds between two times of giving freed memory back, which takes some milliseconds."""


class Stopped(Exception):
    """The run was asked to stop; what it had finished is in its checkpoint."""


@dataclass(frozen=True)
class Failure:
    """Why and at which task (its index) one seed failed."""

    task: int
    message: str


def trainer_of(experiment: Experiment) -> type[Any]:
    """The class that goes through the tasks of an experiment.

    A stream of examples is learnt by ``pliant.bench.engine.Members``; any other kind names its own in the class
    attribute ``trainer``, as ``"module:Class"``.
    """
    cls = resolve("stream", experiment.stream.name, STREAMS)
    module, _, name = getattr(cls, "trainer", "pliant.bench.engine:Members").partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


class Trainer(ABC):
    """Base of what trains; a subclass says what a task is and what its state is.

    Args:
        settings: the experiments of its members, in order.
        seeds: the seeds of each.
        folder: where checkpoints are, the results folder of the experiment; None: neither read nor write any.
        checkpoint_every: seconds between checkpoints, which are taken at the first task boundary after; 0 is every
            task.
        should_stop: polled at task boundaries; when it returns True the state is saved and Stopped is raised.

    Attributes:
        experiment: the first experiment.
        experiments: the experiment of each member; the first one's members come first.
        seeds: the seed of each member.
        stream: the stream of all of them.
        next_task: the task that comes next.
        seconds: computing time so far, that before an interruption included.
        series: name to one row of all members for each task.
        failures: position of a member to why it failed.
    """

    version: ClassVar[str]
    """Of the checkpoints: another one's are not read."""

    def __init__(
        self,
        settings: Sequence[Experiment],
        seeds: Sequence[int],
        folder: Path | None,
        checkpoint_every: float,
        should_stop: Callable[[], bool],
    ) -> None:
        self.settings = tuple(settings)
        self.experiment = settings[0]
        self.experiments = tuple(item for item in settings for _ in seeds)
        self.seeds = tuple(seeds) * len(settings)
        self.folder = folder
        self.checkpoint_every = checkpoint_every
        self.should_stop = should_stop
        self.stream: Stream = self.experiment.build_stream()
        self.traits = traits(self.stream)
        self.next_task = 0
        self.seconds = 0.0
        self.series: dict[str, list[Tensor]] = {}
        self.failures: dict[int, Failure] = {}

    @property
    def online_series(self) -> str:
        """The series of the score before each update."""
        return self.traits.series

    # -- what subclasses say -----------------------------------------------------------------------------------

    @abstractmethod
    def _run_task(self, index: int) -> None:
        """Train on one task and add a row to the series."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides: tensors, numbers, strings, lists and dicts."""

    @abstractmethod
    def _load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`_state` returned; series and failures are there already."""

    @abstractmethod
    def close(self) -> None:
        """Detach everything."""

    def _identity(self) -> dict[str, str]:
        """What a checkpoint must agree with."""
        described = [item.to_dict() for item in self.settings]
        several = {"experiments": described}
        experiment = records.canonical_json(described[0] if len(described) == 1 else several)
        return {"experiment": experiment, "torch": str(torch.__version__), "engine": self.version}

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        state = None if self.folder is None else checkpoint.load_checkpoint(self.folder, self.seeds)
        if state is None or self.folder is None:
            return
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise RecordError(
                    f"{self.folder / checkpoint.FOLDER}: the checkpoint of seeds {list(self.seeds)} was written with "
                    f"another {key} ({state.get(key)!r:.80}); delete the folder to start those seeds again"
                )
        self.series = {name: list(values.unbind(0)) for name, values in state["series"].items()}
        self.failures = {int(member): Failure(*entry) for member, entry in state["failures"].items()}
        self.next_task = int(state["next_task"])
        self.seconds = float(state["seconds"])
        self._load_state(state)

    def save(self) -> None:
        """Write the checkpoint of the current task boundary."""
        if self.folder is None:
            return
        state = {
            **self._identity(),
            **self._state(),
            "series": {name: torch.stack(values) for name, values in self.series.items()},
            "failures": {member: [failure.task, failure.message] for member, failure in self.failures.items()},
            "next_task": self.next_task,
            "seconds": self.seconds,
        }
        checkpoint.save_checkpoint(self.folder, self.seeds, state)

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, on_task: Callable[[Any], None] = lambda trainer: None) -> None:
        """Run the remaining tasks; ``on_task`` is called after each.

        Raises:
            Stopped: ``should_stop`` said so; the state of the last task boundary is saved.
        """
        last_saved = last_trimmed = time.monotonic()
        while self.next_task < self.experiment.num_tasks and len(self.failures) < len(self.seeds):
            if self.should_stop():
                if self.next_task > 0:
                    self.save()
                raise Stopped
            started = time.monotonic()
            self._run_task(self.next_task)
            self.next_task += 1
            if time.monotonic() - last_trimmed >= _TRIM_EVERY:
                return_freed()
                last_trimmed = time.monotonic()
            self.seconds += time.monotonic() - started
            on_task(self)
            finished = self.next_task == self.experiment.num_tasks
            if not finished and time.monotonic() - last_saved >= self.checkpoint_every:
                self.save()
                last_saved = time.monotonic()

    def _add_row(self, row: dict[str, Tensor]) -> None:
        """Append a value of all members to each series."""
        for name, values in row.items():
            self.series.setdefault(name, []).append(values.double())

    def series_of(self, member: int) -> dict[str, list[float]]:
        """Return the series of one member: all its tasks, or those before the task in which it failed."""
        stop = self.failures[member].task if member in self.failures else self.next_task
        return {name: [float(values[member]) for values in columns[:stop]] for name, columns in self.series.items()}
