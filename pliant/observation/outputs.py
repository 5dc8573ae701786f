"""What is read off a model's output and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pliant.observation.rows import row_mask
from pliant.units.export import model_outputs

__all__ = ["as_rows", "first_line", "logits_of", "measured", "takes_softmax"]


def logits_of(output: Any) -> Tensor | None:
    """The first output with at least two dimensions."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    leaves = [named] if isinstance(named, Tensor) else model_outputs(output)
    return next((leaf for leaf in leaves if leaf.is_floating_point() and leaf.ndim >= 2), None)


def as_rows(tensor: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Outputs, or their gradients, as samples x classes, in the precision that is measured in, padding left out."""
    if tensor is None:
        return None
    last = tensor if tensor.ndim <= 3 else tensor.movedim(1, -1)  # maps of classes have them second
    counts = row_mask(last.shape[:-1], mask)
    rows_NC = last.reshape(-1, last.shape[-1])
    return measured(rows_NC if counts is None else rows_NC[counts])


def takes_softmax(loss: Tensor, output: Any) -> bool:
    """Whether a softmax lies between the outputs and the loss."""
    ends = {leaf.grad_fn for leaf in model_outputs(output) if leaf.ndim}
    pending, seen = [loss.grad_fn], set(ends)
    while pending and len(seen) < 10_000:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if "Softmax" in node.name() or "NllLoss" in node.name():
            return True
        seen.add(node)
        pending.extend(source for source, _ in node.next_functions)
    return False


def measured(tensor: Tensor) -> Tensor:
    """A copy in the precision that is measured in."""
    return tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32, copy=True)


def first_line(error: BaseException) -> str:
    """What an error says, in one line without its full stop."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
