"""Plasticity injection, slowly: after so many steps a plain MLP's last layer becomes three.

From Nikishin et al. (2023), arXiv:2305.15555: the old layer is frozen; a new one is drawn twice with the same numbers,
one to be trained and one frozen; the output is old + new - frozen copy. Everything before goes on training. The new
weights get an optimizer state that begins at zero. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlowInjection:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``; call it instead of the network.

    Args:
        layers: The network's modules, in order; the last one is linear.
        make_optimizer: Makes an optimizer of the kind that trains the network, for the new weights alone.
        draw: ``draw(shape, bound)`` gives fresh values, uniform on ``[-bound, bound]``.
        at: After how many steps.
    """

    def __init__(self, layers: list[nn.Module], make_optimizer, draw, *, at: int) -> None:
        self.layers, self.make_optimizer, self.draw, self.at = layers, make_optimizer, draw, at
        self.step = 0
        self.new: nn.Linear | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The output of the network as it is now."""
        for layer in self.layers[:-1]:
            x = layer(x)
        out = self.layers[-1](x)
        if self.new is not None:
            out = out + self.new(x) - nn.functional.linear(x, self.copy_weight, self.copy_bias)
        return out

    def after_step(self) -> None:
        """Count; the new weights have an optimizer of their own, which steps here."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += 1
        if self.step == self.at:
            self._inject()

    def _inject(self) -> None:
        old = self.layers[-1]
        old.requires_grad_(False)
        old.weight.grad = old.bias.grad = None
        self.new = nn.Linear(old.in_features, old.out_features, dtype=old.weight.dtype)
        with torch.no_grad():
            for parameter in (self.new.weight, self.new.bias):
                parameter.copy_(self.draw(tuple(parameter.shape), old.in_features**-0.5))
        self.copy_weight = self.new.weight.detach().clone()
        self.copy_bias = self.new.bias.detach().clone()
        self.optimizer = self.make_optimizer(self.new.parameters())
