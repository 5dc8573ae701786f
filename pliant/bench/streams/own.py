"""What streams of a user's own data share: every task is checked before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pliant.bench.streams.base import LOSSES, Task, require
from pliant.errors import IllegalConfiguration

__all__ = ["as_task", "as_tensor", "checked"]

_PAIRS = (("inputs", "targets"), ("test_inputs", "test_targets"), ("valid_inputs", "valid_targets"))


def as_tensor(values: Any) -> Tensor:
    """Return an array, list or tensor as a tensor: whole numbers as int64, others as float32."""
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if tensor.is_floating_point():
        return tensor.float()
    return tensor.long()


def as_task(given: Sequence[Any], num_epochs: int, batch_size: int, index: int) -> Task:
    """Return ``(inputs, targets)``, or these with test inputs and targets, as a task."""
    if len(given) not in (2, 4):
        raise IllegalConfiguration(f"task {index}: give (inputs, targets) or these with test inputs and targets")
    tensors = [None if value is None else as_tensor(value) for value in given] + [None, None]
    inputs, targets, test_inputs, test_targets = tensors[:4]
    if inputs is None or targets is None:
        raise IllegalConfiguration(f"task {index}: inputs and targets must be given")
    return Task(inputs, targets, num_epochs, batch_size, (index,), test_inputs, test_targets)


def checked(stream: object, task: Task, where: str, loss: str, num_classes: int, input_shape: tuple[int, ...]) -> Task:
    """Return the task if it can be trained on.

    Args:
        stream: whose task it is, for messages.
        task: the task.
        where: which task, for messages.
        loss: of the stream.
        num_classes: of the stream.
        input_shape: of the stream; empty: any.

    Raises:
        IllegalConfiguration: says what is wrong with which of its tensors.
    """
    require(loss in LOSSES, stream, f"loss {loss!r} is none of {', '.join(LOSSES)}")
    for inputs_name, targets_name in _PAIRS:
        inputs, targets = getattr(task, inputs_name), getattr(task, targets_name)
        if inputs is None and targets is None and inputs_name != "inputs":
            continue
        require(inputs is not None and targets is not None, stream, f"{where}: {inputs_name} without {targets_name}")
        sizes = f"{inputs_name} {list(inputs.shape)} and {targets_name} {list(targets.shape)}"
        require(
            inputs.ndim >= 2 and len(inputs) > 0, stream, f"{where}: {sizes}; expected at least one example [N, ...]"
        )
        require(len(inputs) == len(targets), stream, f"{where}: {sizes} differ in length")
        fits = not input_shape or tuple(inputs.shape[1:]) == input_shape
        require(
            fits,
            stream,
            f"{where}: {inputs_name} {list(inputs.shape)} instead of [N, {', '.join(map(str, input_shape))}]",
        )
        for name, tensor in ((inputs_name, inputs), (targets_name, targets)):
            finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
            require(finite, stream, f"{where}: {name} holds values that are not finite")
        if loss == "cross_entropy":
            require(
                not targets.is_floating_point(), stream, f"{where}: {targets_name} must be whole numbers for {loss}"
            )
            low, high = int(targets.min()), int(targets.max())
            inside = low >= 0 and high < num_classes
            require(inside, stream, f"{where}: {targets_name} are {low} to {high}, outside 0..{num_classes - 1}")
        else:
            shaped = targets.is_floating_point() and tuple(targets.shape[1:]) == (num_classes,)
            require(
                shaped,
                stream,
                f"{where}: {targets_name} {list(targets.shape)} must be floats [N, {num_classes}] for {loss}",
            )
    return task
