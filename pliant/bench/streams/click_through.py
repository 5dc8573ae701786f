"""Click-through prediction on a table whose tastes drift and whose vocabulary grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from pliant.bench.streams.base import Task, generator, require, tensor_bytes

__all__ = ["ClickThrough"]

_BLOCK = 256
_FACTORS = 4
"""Numbers by which two entries of a row interact."""


@final
@dataclass(frozen=True)
class ClickThrough:
    """Rows of categorical entries with a click or none: new entries appear all the time, and what is liked changes.

    Each field has entries 0, 1, ...; in task k the first ``vocabulary + growth * k`` have appeared. Recent ones are
    frequent: the entry that is r-th newest comes with probability proportional to ``(1 + r) ** -zipf``. A row is
        clicked
    with probability ``sigmoid(bias + (sum of weights + sum over pairs of <v, v'>) / sqrt(num_fields))``; weights and
    vectors of an entry turn slowly, ``a cos(p) + b sin(p)`` with ``p = 2 pi k / period + phase`` of its own, a and b
    normal. A model sees an entry as one of ``capacity`` ids per field, its number modulo ``capacity``: old entries
    make room, as in a table of hashes. No entry is shown that is so old that its id has been given to another.

    Attributes:
        num_fields: entries of a row.
        vocabulary: entries of a field in task 0.
        growth: entries of a field that are new in each task.
        capacity: ids of a field.
        zipf: how much more frequent new entries are.
        period: tasks in which tastes turn round once; large is slow.
        bias: logit of an average row.
        num_examples: rows per task.
        num_epochs: passes over a task.
        batch_size: examples per update.
        num_test: test rows; 0: none.

    Source: the setting of display advertising, as in He et al. (2014), Practical lessons from predicting clicks on ads
        at Facebook, DOI 10.1145/2648584.2648589, with the interactions of a factorisation machine (Rendle 2010, DOI
        10.1109/ICDM.2010.127); generated. There is no published setting.
    """

    name: ClassVar[str] = "click_through"
    title: ClassVar[str] = "Drifting click-through table"
    loss: ClassVar[str] = "binary_cross_entropy"
    score: ClassVar[str] = "auc"
    num_classes: ClassVar[int] = 1
    input_dtype: ClassVar[torch.dtype] = torch.int64

    num_fields: int = 6
    vocabulary: int = 40
    growth: int = 2
    capacity: int = 200
    zipf: float = 0.8
    period: float = 40.0
    bias: float = -1.0
    num_examples: int = 2048
    num_epochs: int = 1
    batch_size: int = 32
    num_test: int = 0

    def __post_init__(self) -> None:
        for option in ("num_fields", "vocabulary", "capacity", "num_examples", "num_epochs", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        require(self.growth >= 0, self, "growth must not be negative")
        require(self.vocabulary <= self.capacity, self, f"vocabulary must be at most capacity ({self.capacity})")
        require(self.zipf >= 0, self, "zipf must not be negative")
        require(self.period > 0, self, "period must be positive")
        require(self.num_test >= 0, self, "num_test must not be negative")

    @property
    def num_inputs(self) -> int:
        """Ids that an entry of a row can be: ``capacity`` for each field."""
        return self.num_fields * self.capacity

    @property
    def input_shape(self) -> tuple[int]:
        """Entries of a row."""
        return (self.num_fields,)

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return tensor_bytes(self.num_examples + self.num_test, self.input_shape, itemsize=8, target_bytes=4)

    def num_entries(self, index: int) -> int:
        """Return how many entries of a field have appeared by task ``index``."""
        return self.vocabulary + self.growth * index

    def _traits(self, field: int, first: int, stop: int, index: int, seed: int) -> np.ndarray:
        """Weight and vector of entries ``first`` to ``stop - 1`` in a task, ``[stop - first, 1 + _FACTORS]``."""
        blocks = range(first // _BLOCK, (stop - 1) // _BLOCK + 1)
        width = 2 * (1 + _FACTORS) + 1
        drawn = np.concatenate(
            [generator(f"{self.name} entries", seed, field, b).standard_normal((_BLOCK, width)) for b in blocks]
        )[first - blocks[0] * _BLOCK : stop - blocks[0] * _BLOCK]
        a, b, phase = np.split(drawn, (1 + _FACTORS, 2 * (1 + _FACTORS)), axis=1)
        angle = 2 * np.pi * (index / self.period + phase)
        turned: np.ndarray = a * np.cos(angle) + b * np.sin(angle)
        return turned

    def _rows(self, num: int, index: int, seed: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        stop = self.num_entries(index)
        first = max(0, stop - self.capacity)
        frequency = (1.0 + np.arange(stop - first)) ** -self.zipf
        bounds = np.cumsum(frequency / frequency.sum())
        entries = np.empty((num, self.num_fields), dtype=np.int64)
        weights, vectors = np.zeros(num), np.empty((self.num_fields, num, _FACTORS))
        for field in range(self.num_fields):
            newest = np.minimum(np.searchsorted(bounds, rng.random(num)), stop - first - 1)
            number = stop - 1 - newest
            found = self._traits(field, first, stop, index, seed)[number - first]
            weights += found[:, 0]
            vectors[field] = found[:, 1:]
            entries[:, field] = field * self.capacity + number % self.capacity
        # sum over pairs of <v, v'> = (|sum v|^2 - sum |v|^2) / 2
        pairs = ((vectors.sum(0) ** 2).sum(-1) - (vectors**2).sum((0, 2))) / (2 * _FACTORS**0.5)
        logits = self.bias + (weights + pairs) / self.num_fields**0.5
        clicked = rng.random(num) < 1 / (1 + np.exp(-logits))
        return torch.from_numpy(entries), torch.from_numpy(clicked.astype(np.float32)[:, None])

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        inputs, targets = self._rows(self.num_examples, index, seed, generator(self.name, seed, index))
        test: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.num_test:
            test = self._rows(self.num_test, index, seed, generator(f"{self.name} test", seed, index))
        return Task(
            inputs,
            targets,
            self.num_epochs,
            self.batch_size,
            (seed, index),
            test_inputs=test[0],
            test_targets=test[1],
            name=f"{self.num_entries(index)} entries per field",
        )
