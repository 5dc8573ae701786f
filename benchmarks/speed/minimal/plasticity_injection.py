"""Plasticity injection by hand: the last layer is three."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import PlasticityInjection

METHOD = PlasticityInjection(at=0)


class Three(nn.Module):
    """Old, new, and a copy of the new."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.old = copy.deepcopy(old).requires_grad_(False)
        self.new = nn.Linear(old.in_features, old.out_features)
        self.copy = copy.deepcopy(self.new).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out: Tensor = self.old(x) + (self.new(x) - self.copy(x))
        return out


class ByHand(Minimal):
    """The network is changed once; a training step is plain."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        three = Three(self.linears[-1])
        optimizer.param_groups[0]["params"][-2:] = three.new.parameters()
        model[len(model) - 1] = three
