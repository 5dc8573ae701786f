"""Optimizer reset by hand: nothing happens between resets."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import OptimizerReset

METHOD = OptimizerReset(every=1000)


class ByHand(Minimal):
    """The optimizer forgets everything every 1000 steps."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.step = 0

    def after_step(self) -> None:
        """Count, and forget when due."""
        self.step += 1
        if self.step % 1000 == 0:
            self.optimizer.state.clear()
