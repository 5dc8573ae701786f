"""Layer reset by hand: nothing happens between resets."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import LayerReset

METHOD = LayerReset(1, every=1000)


class ByHand(Minimal):
    """The last layer begins anew every 1000 steps."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.step = 0

    def after_step(self) -> None:
        """Count, and reset when due."""
        self.step += 1
        if self.step % 1000 == 0:
            self.linears[-1].reset_parameters()
            for parameter in self.linears[-1].parameters():
                self.optimizer.state.pop(parameter, None)
