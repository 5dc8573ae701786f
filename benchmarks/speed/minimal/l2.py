"""Decoupled L2 by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import L2

METHOD = L2(1e-4)


class ByHand(Minimal):
    """All parameters times one factor."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.parameters = list(model.parameters())

    def after_step(self) -> None:
        """Shrink."""
        with torch.no_grad():
            torch._foreach_mul_(self.parameters, 1 - self.optimizer.param_groups[0]["lr"] * 1e-4)
