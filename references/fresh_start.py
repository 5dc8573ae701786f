"""A fresh start, slowly: at every task boundary a plain MLP is drawn anew and its optimizer begins again.

The network that is retrained from scratch in Dohare et al. (Nature, 2024). Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import nn

from references.layer_reset import restart


class SlowFreshStart:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``.

    Args:
        linears: The linear layers, in order.
        optimizer: Whose state belongs to them.
        draw: ``draw(shape, bound)`` gives fresh values, uniform on ``[-bound, bound]``.
    """

    def __init__(self, linears: list[nn.Linear], optimizer: torch.optim.Optimizer, draw) -> None:
        self.linears, self.optimizer, self.draw = linears, optimizer, draw

    def after_step(self) -> None:
        """Nothing happens within a task."""

    def at_task_boundary(self) -> None:
        """Begin again."""
        with torch.no_grad():
            for layer in self.linears:
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(self.draw(tuple(parameter.shape), layer.in_features**-0.5))
                    restart(self.optimizer, parameter)
