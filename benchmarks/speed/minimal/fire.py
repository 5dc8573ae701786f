"""FIRE by hand: nothing happens between its actions, each of which is ten products for every layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import FIRE

METHOD = FIRE(every=1000)


class ByHand(Minimal):
    """Every weight becomes a scaled isometry every 1000 steps."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.step = 0

    def after_step(self) -> None:
        """Count, and orthogonalise when due."""
        self.step += 1
        if self.step % 1000 == 0:
            with torch.no_grad():
                for layer in self.linears:
                    layer.weight.copy_(polar(layer.weight) * (layer.out_features / layer.in_features) ** 0.5)
                    self.optimizer.state.pop(layer.weight, None)


def polar(weight: torch.Tensor) -> torch.Tensor:
    """The polar factor by ten Newton-Schulz iterations, on the smaller side."""
    x = weight.T if weight.shape[1] > weight.shape[0] else weight
    x = x / x.norm()
    for _ in range(10):
        x = 1.5 * x - 0.5 * x @ (x.T @ x)
    return x.T if weight.shape[1] > weight.shape[0] else x
