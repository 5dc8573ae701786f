"""Layer reset, slowly: the last layers of a plain MLP are drawn anew, one at a time.

From Nikishin et al. (2022), arXiv:2205.07802: every so many updates the last layers of a network are initialised
again, as they were at first, and so is what the optimizer keeps for them; everything before them stays. Nothing of the
package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlowLayerReset:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``.

    Args:
        linears: The linear layers, in order.
        optimizer: Whose state belongs to them.
        draw: ``draw(shape, bound)`` gives fresh values, uniform on ``[-bound, bound]``.
        last: How many layers are reset, counted from the end.
        every: After how many steps.
    """

    def __init__(
        self, linears: list[nn.Linear], optimizer: torch.optim.Optimizer, draw, *, last: int, every: int
    ) -> None:
        self.linears, self.optimizer, self.draw, self.last, self.every = linears, optimizer, draw, last, every
        self.step = 0

    def after_step(self) -> None:
        """Act."""
        self.step += 1
        if self.step % self.every:
            return
        with torch.no_grad():
            for layer in self.linears[len(self.linears) - self.last :]:
                bound = layer.in_features**-0.5  # nn.Linear's own, for weights and biases
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(self.draw(tuple(parameter.shape), bound))
                    restart(self.optimizer, parameter)


def restart(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Put what SGD, Adam or RMSprop keep for a parameter back to where it began: zeros, the step counter included."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor):
            value.zero_()
