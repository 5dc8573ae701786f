"""ReGraMa by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import ReGraMa

METHOD = ReGraMa()


class ByHand(Minimal):
    """Now and then, a look at the gradients of the weights."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.step = 0

    def after_step(self) -> None:
        """Reset the units whose weights receive hardly any gradient, when due."""
        self.step += 1
        if METHOD.every is None or self.step % METHOD.every:
            return
        with torch.no_grad():
            inactive = []
            for layer in self.linears[:-1]:
                magnitude = layer.weight.grad.abs().mean(1)
                inactive.append((magnitude <= METHOD.tau * magnitude.mean()).nonzero()[:, 0])
            for layer, units in enumerate(inactive):
                self.renew(layer, units)
