"""Normalize-and-Project by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import NormalizeAndProject

METHOD = NormalizeAndProject(unnormalised="ignore")


class ByHand(Minimal):
    """Each weight times its initial norm over its norm."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.weights = [layer.weight for layer in self.linears]
        with torch.no_grad():
            self.initial = torch.stack(torch._foreach_norm(self.weights))

    def after_step(self) -> None:
        """Project."""
        with torch.no_grad():
            factors = self.initial / torch.stack(torch._foreach_norm(self.weights))
            torch._foreach_mul_(self.weights, list(factors.unbind()))
