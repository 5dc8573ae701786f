"""A stream of your own from a function that yields tasks: nothing is written, one task is held at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, final

import torch

from pliant.bench.streams.base import Task, require
from pliant.bench.streams.own import as_task, checked
from pliant.errors import IllegalConfiguration

__all__ = ["IterableStream"]


@final
class _Cursor:
    """Where an iterator is; going back means to begin again."""

    def __init__(self, source: Callable[[int], Iterable[Any]], seed: int) -> None:
        self._source, self._seed = source, seed
        self._rest: Iterator[Any] = iter(())
        self.index = -1
        self.current: Any = None

    def at(self, index: int) -> Any:
        """Return what the iterator yields at a place; None after its end."""
        if index < self.index or self.index < 0:
            self._rest, self.index = iter(self._source(self._seed)), -1
        while self.index < index:
            self.current = next(self._rest, None)
            if self.current is None:
                self.index = -1
                return None
            self.index += 1
        return self.current


_CURSORS: dict[tuple[str, int], _Cursor] = {}
_MOST_CURSORS = 64


@final
@dataclass(frozen=True)
class IterableStream:
    """The tasks that a function of yours yields, for example from a generator.

    ``source(seed)`` returns an iterable of tasks, or of tuples ``(inputs, targets)`` or ``(inputs, targets,
    test_inputs, test_targets)``. It must yield the same for the same seed: then ``task(k)`` does not depend on what was
    asked before. Going forward costs nothing; going back, or resuming, begins anew and skips what comes before. For
    faster access write the tasks into a folder.

    Attributes:
        source: ``my.module:function``.
        num_classes: outputs of a model: labels are below it, numbers have so many columns.
        loss: ``cross_entropy``, ``mse`` or ``binary_cross_entropy``.
        score: the online measure: ``accuracy``, ``mse`` or ``auc``.
        num_epochs: passes over tasks that come as tuples.
        batch_size: examples per update of tasks that come as tuples.

    Source: your data.
    """

    name: ClassVar[str] = "iterable"
    title: ClassVar[str] = "Tasks of a function"

    source: str = ""
    num_classes: int = 10
    loss: str = "cross_entropy"
    score: str = "accuracy"
    num_epochs: int = 1
    batch_size: int = 16

    def __post_init__(self) -> None:
        for option in ("num_classes", "num_epochs", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")

    def _function(self) -> Callable[[int], Iterable[Any]]:
        module_name, colon, attribute = self.source.partition(":")
        require(bool(colon and attribute), self, f"source {self.source!r}: write my.module:function")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise IllegalConfiguration(f"IterableStream: {module_name!r} cannot be imported ({error})") from error
        function = getattr(module, attribute, None)
        require(callable(function), self, f"source {self.source!r} is no function")
        found: Callable[[int], Iterable[Any]] = function  # type: ignore[assignment]
        return found

    @property
    def num_inputs(self) -> int:
        """Numbers of an example."""
        return int(torch.Size(self.input_shape).numel())

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, that of the first task of seed 0."""
        return tuple(self._raw(0, 0).inputs.shape[1:])

    @property
    def input_dtype(self) -> torch.dtype:
        """float32 or int64."""
        return self._raw(0, 0).inputs.dtype

    def _raw(self, index: int, seed: int) -> Task:
        key = (self.source, seed)
        if key not in _CURSORS:
            if len(_CURSORS) >= _MOST_CURSORS:
                _CURSORS.pop(next(iter(_CURSORS)))
            _CURSORS[key] = _Cursor(self._function(), seed)
        given = _CURSORS[key].at(index)
        require(given is not None, self, f"{self.source} ends before task {index}")
        task = given if isinstance(given, Task) else as_task(given, self.num_epochs, self.batch_size, index)
        return replace(task, order_key=(seed, index))

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`pliant.bench.streams.base.Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        task = checked(self, self._raw(index, seed), f"task {index}", self.loss, self.num_classes, ())
        # The iterator may go on using what it has yielded.
        tensors = {field.name: getattr(task, field.name) for field in fields(Task)}
        copies: dict[str, Any] = {name: x.clone() for name, x in tensors.items() if isinstance(x, torch.Tensor)}
        return replace(task, **copies)
