"""The data of all members for one task, in batches: gathered in chunks, since a batch at a time costs more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pliant.bench.objective import Heads, Objective
from pliant.bench.streams.base import Task
from pliant.errors import IllegalConfiguration

__all__ = ["Chunk", "TaskData", "TestData"]

_CHUNK_BYTES = 4 * 2**20
"""Batches are gathered in chunks of about this size: larger ones would drive the weights out of the cache."""


@dataclass
class Chunk:
    """Consecutive batches of equal size.

    Attributes:
        inputs: ``[K, S, B, *input_shape]``.
        targets: ``[K, S, B, ...]``, numbered as the active outputs are.
        constants: the constant part of the gradient, see :meth:`Objective.constant`.
        ends_epoch: Whether a pass ends with it; only said where passes are kept apart.
    """

    inputs: Tensor
    targets: Tensor
    constants: Tensor
    ends_epoch: bool

    def part(self, start: int, stop: int) -> Chunk:
        """Some of its batches."""
        some = slice(start, stop)
        return Chunk(self.inputs[some], self.targets[some], self.constants[some], self.ends_epoch)


@dataclass(frozen=True)
class TestData:
    """Examples to evaluate all members on: ``inputs [S, N, *input_shape]``, ``targets [S, N, ...]``, and the heads."""

    inputs: Tensor
    targets: Tensor
    heads: Heads


@dataclass
class TaskData:
    """The data of all members for one task, and its batches in the stream's order.

    Attributes:
        tasks: one for each member, alike in size; the same object for members that have the same data.
        objective: loss and score of the stream.
        num_outputs: of the model.
        device: where batches go.

    Raises:
        IllegalConfiguration: tasks of different sizes, or with different settings.
    """

    tasks: Sequence[Task]
    objective: Objective
    num_outputs: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    inputs: Tensor = field(init=False)
    targets: Tensor = field(init=False)
    heads: Heads = field(init=False)
    _rows: list[int] = field(init=False)

    def __post_init__(self) -> None:
        shapes = {(task.inputs.shape, task.targets.shape, task.num_epochs, task.batch_size) for task in self.tasks}
        if len(shapes) != 1:
            raise IllegalConfiguration(
                f"the stream gives its seeds tasks of different sizes: {sorted(map(str, shapes))}"
            )
        first = self.tasks[0]
        for name in ("augment", "active_outputs", "valid_inputs", "test_inputs"):
            if len({getattr(task, name) is None for task in self.tasks}) != 1:
                raise IllegalConfiguration(f"the stream gives {name} to some of its seeds only")
        if len({task.reset_head for task in self.tasks}) != 1:
            raise IllegalConfiguration("the stream asks for a new output layer for some of its seeds only")
        unique = {id(task): task for task in self.tasks}
        place = {key: row for row, key in enumerate(unique)}
        self._rows = [place[id(task)] for task in self.tasks]  # members with the same seed share their data
        self.inputs = _stacked([task.inputs for task in unique.values()]).to(self.device)
        self.targets = _stacked([task.targets for task in unique.values()]).to(self.device)
        active = None
        if first.active_outputs is not None:
            active = [task.active_outputs or () for task in self.tasks]
        self.heads = Heads(self.objective, self.num_outputs, active, self.device)

    def training(self, num_examples: int) -> TestData:
        """The first of the task's own examples."""
        inputs, targets = self.inputs[:, :num_examples], self.targets[:, :num_examples]
        return TestData(self._spread(inputs), self._spread(targets), self.heads)

    def _spread(self, rows: Tensor) -> Tensor:
        """Rows of different data as rows of members."""
        return rows if len(self._rows) == len(rows) else rows[self._rows]

    def held_out(self, kind: str) -> TestData | None:
        """The examples of ``"test"`` or ``"valid"``; None where the stream has none."""
        inputs = [getattr(task, f"{kind}_inputs") for task in self.tasks]
        targets = [getattr(task, f"{kind}_targets") for task in self.tasks]
        if any(item is None for item in (*inputs, *targets)):
            return None
        if len({item.shape for item in inputs}) != 1:
            raise IllegalConfiguration(f"the stream gives its seeds {kind} sets of different sizes")
        return TestData(_stacked(inputs).to(self.device), _stacked(targets).to(self.device), self.heads)

    def chunks(self, weight_S: Tensor | None, dtype: torch.dtype) -> Iterator[Chunk]:
        """Yield all batches of the task.

        Args:
            weight_S: factor of each member's gradient (None: all ones).
            dtype: that of the outputs.
        """
        first = self.tasks[0]
        num_members, num_examples = len(self.tasks), self.inputs.shape[1]
        size = min(first.batch_size, num_examples)
        num_full = num_examples // size
        per_batch = num_members * size * self.inputs[0, 0].numel() * self.inputs.element_size()
        multiple = chunk_multiple(size)
        per_chunk = max(multiple, _CHUNK_BYTES // max(per_batch, 1) // multiple * multiple)
        flat_inputs, flat_targets = self.inputs.flatten(0, 1), self.targets.flatten(0, 1)
        offset_S1 = torch.tensor(self._rows).unsqueeze(1) * num_examples
        # Passes without a smaller last batch follow each other without a seam: fewer, larger chunks.
        apart = num_full * size < num_examples or first.augment is not None or first.valid_inputs is not None
        epochs = range(first.num_epochs)
        for together in [[epoch] for epoch in epochs] if apart else [list(epochs)]:
            orders = {id(task): task for task in self.tasks}
            found = [torch.cat([task.order(epoch) for epoch in together]) for task in orders.values()]
            order_SN = (torch.stack([found[row] for row in self._rows]) + offset_S1).to(self.device)
            num_batches = num_full * len(together)
            bounds = [
                (k * size, min(k + per_chunk, num_batches) * size, size) for k in range(0, num_batches, per_chunk)
            ]
            if num_full * size < num_examples:
                bounds.append((num_full * size, num_examples, num_examples - num_full * size))
            for start, stop, batch in bounds:
                index_KSB = order_SN[:, start:stop].reshape(num_members, -1, batch).transpose(0, 1)
                inputs = self._augmented(_rows_of(flat_inputs, index_KSB), together[0], start // size)
                targets = self.heads.targets(_rows_of(flat_targets, index_KSB))
                constants = self.heads.constant(targets, dtype, weight_S)
                yield Chunk(inputs, targets, constants, apart and stop == bounds[-1][1])

    def _augmented(self, inputs: Tensor, epoch: int, step: int) -> Tensor:
        """A chunk whose first batch is the given one of a pass."""
        if self.tasks[0].augment is None:
            return inputs
        return torch.stack(
            [
                torch.stack([task.augmented(x, epoch, step + k) for task, x in zip(self.tasks, batch, strict=True)])
                for k, batch in enumerate(inputs)
            ]
        )


def chunk_multiple(batch_size: int) -> int:
    """Batches of a chunk are a multiple of this: what is done in blocks of steps must not depend on where it ends."""
    return 64 if batch_size == 1 else 32


def _rows_of(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``; whole rows at a time, which takes a third of the time."""
    return table.index_select(0, index.reshape(-1)).view(*index.shape, *table.shape[1:])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(list(parts))
