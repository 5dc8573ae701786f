"""Hare and tortoise, slowly: a second set of weights for a plain MLP, one number's worth of arithmetic at a time.

From Lee et al. (2024), arXiv:2406.02596: after every step the slow weights are an exponential moving average of the
fast ones; every so many steps the fast weights are overwritten by the slow ones. The optimizer is left alone. Nothing
of the package is used.
"""

from __future__ import annotations

import torch
from torch import nn


class SlowHareAndTortoise:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``.

    Args:
        linears: The linear layers, in order.
        decay: How much of the slow weights is kept at each step.
        every: After how many steps the fast weights go back.
    """

    def __init__(self, linears: list[nn.Linear], *, decay: float, every: int) -> None:
        self.fast = [parameter for layer in linears for parameter in (layer.weight, layer.bias)]
        self.slow = [parameter.detach().clone() for parameter in self.fast]
        self.decay, self.every, self.step = decay, every, 0

    def after_step(self) -> None:
        """Act."""
        self.step += 1
        with torch.no_grad():
            for index, parameter in enumerate(self.fast):
                self.slow[index] = self.decay * self.slow[index] + (1 - self.decay) * parameter
            if self.step % self.every == 0:
                for index, parameter in enumerate(self.fast):
                    parameter.copy_(self.slow[index])
