"""The user's own data as a task: loaders, lists, functions of the seed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pliant.errors import IllegalConfiguration
from pliant.probe.tasks import Data, Gathered, Task, on_device

__all__ = ["as_task", "described_task", "moved"]


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The user's own loader, or a function of the seed that gives one, read once for every seed."""

    source: Any

    def batches(self, seed: int, steps: int) -> Sequence[Any]:
        """The first batches, and those of further passes where it ends sooner."""
        found: list[Any] = []
        source = self.source
        if callable(source) and not isinstance(source, Iterable):
            source = source(seed)
        if isinstance(source, Task):
            return source.batches(seed, steps)
        with _seeded(source, seed) as loader:
            while len(found) < steps:
                before = len(found)
                for batch in loader:
                    found.append(dict(batch) if isinstance(batch, Mapping) else batch)
                    if len(found) == steps:
                        return found
                if len(found) == before:
                    said = "is empty" if not found else f"gives only {before} batches and then no more"
                    raise IllegalConfiguration(
                        f"the task's {type(self.source).__name__} {said}, and steps={steps} are asked for: give data "
                        "that can be read again (a list, a DataLoader), or fewer steps."
                    )
        return found


@contextlib.contextmanager
def _seeded(source: Any, seed: int) -> Iterator[Any]:
    """A loader whose own generators start at the seed and are put back afterwards, with nobody else's workers."""
    if not isinstance(source, DataLoader):
        yield source
        return
    loader: Any = copy.copy(source)
    loader._iterator = None  # persistent workers belong to the user's own pass over it
    samplers = [source, source.sampler, source.batch_sampler, getattr(source.batch_sampler, "sampler", None)]
    generators = {id(g): g for item in samplers if isinstance(g := getattr(item, "generator", None), torch.Generator)}
    states = [(generator, generator.get_state()) for generator in generators.values()]
    try:
        for generator, _ in states:
            generator.manual_seed(seed)
        yield loader
    finally:
        for generator, state in states:
            generator.set_state(state)


def as_task(task: Any) -> Task:
    """What was given as a task.

    Args:
        task: A :class:`Task`; a loader, a list or any iterable of batches that can be read more than once; a function
            of the seed that gives one; or a tuple of two tensors, inputs and targets.

    Raises:
        IllegalConfiguration: For anything else, and for iterators, which the probe would use up.
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, tuple) and len(task) == 2 and all(isinstance(item, Tensor) for item in task):
        return Data(inputs=task[0], targets=task[1])
    if isinstance(task, Iterator):
        raise IllegalConfiguration(
            "the task is an iterator, which the probe would use up, and which gives each seed other data: pass the "
            "loader or list itself, or a function of the seed that makes an iterator."
        )
    if isinstance(task, Mapping) or not (callable(task) or isinstance(task, Iterable)):
        raise IllegalConfiguration(
            f"a task cannot be a {type(task).__name__}: pass a loader or list of batches, a function of the seed that "
            "gives one, (inputs, targets), or a task such as RandomLabels(inputs=x, num_classes=10)."
        )
    return _Loaded(task)


def described_task(task: Any) -> dict[str, Any]:
    """What a task is, as JSON data: its name and plain options, and the shape of its inputs."""
    source = getattr(task, "source", task)
    found: dict[str, Any] = {"name": getattr(source, "__name__", None) or type(source).__name__}
    if is_dataclass(task):
        for item in fields(task):
            value = getattr(task, item.name)
            if value is None or isinstance(value, (bool, int, float, str)):
                found[item.name] = value
            elif isinstance(value, tuple) and all(isinstance(entry, int) for entry in value):
                found[item.name] = list(value)
            elif isinstance(value, Tensor):
                found[item.name] = {"shape": list(value.shape)}
    return found


def moved(batches: Sequence[Any], device: torch.device) -> Sequence[Any]:
    """The batches on a device."""
    if isinstance(batches, Gathered):
        return batches.to(device)
    return [on_device(batch, device) for batch in batches]
