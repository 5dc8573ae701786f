"""Decoupled L2 Init by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import L2Init

METHOD = L2Init(1e-2)


class ByHand(Minimal):
    """All parameters a share of the way to where they began."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.parameters = list(model.parameters())
        self.initial = [parameter.detach().clone() for parameter in self.parameters]

    def after_step(self) -> None:
        """Pull."""
        with torch.no_grad():
            torch._foreach_lerp_(self.parameters, self.initial, self.optimizer.param_groups[0]["lr"] * 1e-2)
