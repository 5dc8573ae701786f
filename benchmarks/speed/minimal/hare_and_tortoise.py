"""Hare and tortoise by hand: one interpolation of all parameters per step."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import HareAndTortoise

METHOD = HareAndTortoise()


class ByHand(Minimal):
    """A list of slow parameters beside the fast ones."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.fast = list(model.parameters())
        self.slow = [p.detach().clone() for p in self.fast]
        self.step = 0

    def after_step(self) -> None:
        """The tortoise moves; every 200 steps the hare goes back."""
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.slow, self.fast, 0.001)
            if self.step % 200 == 0:
                torch._foreach_copy_(self.fast, self.slow)
