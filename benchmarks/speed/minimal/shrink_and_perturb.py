"""Shrink and perturb by hand, softly: every parameter shrinks and gets noise after every step."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import ShrinkAndPerturb

METHOD = ShrinkAndPerturb(1 - 1e-6, 1e-6, every=1)


class ByHand(Minimal):
    """One multiplication and one addition for all parameters, and as many random numbers as there are of them."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.parameters = [p for layer in self.linears for p in layer.parameters()]
        self.bounds = [1e-6 * layer.in_features**-0.5 for layer in self.linears for _ in layer.parameters()]
        self.generator = torch.Generator().manual_seed(1)

    def after_step(self) -> None:
        """Shrink and perturb."""
        with torch.no_grad():
            torch._foreach_mul_(self.parameters, 1 - 1e-6)
            noise = [
                torch.empty_like(p).uniform_(-bound, bound, generator=self.generator)
                for p, bound in zip(self.parameters, self.bounds, strict=True)
            ]
            torch._foreach_add_(self.parameters, noise)
