"""C-CHAIN by hand; the reference batch is the training batch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import CChain

METHOD = CChain(0.05, start=2)


class ByHand(Minimal):
    """The network of the step before, and running means."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.newest, self.lagged = copy.deepcopy(model), copy.deepcopy(model)
        self.mean_loss = self.mean_churn = self.loss = self.churn = torch.zeros(())

    def add_to_loss(self, loss: Tensor, x: Tensor) -> Tensor:
        """With the scaled churn."""
        with torch.no_grad():
            target = self.lagged(x)
        churn = (self.model(x) - target).square().mean()
        self.loss, self.churn = loss.detach().abs(), churn.detach()
        return loss + 0.05 * self.mean_loss / (self.mean_churn + 1e-8) * churn

    def after_step(self) -> None:
        """Means and copies."""
        self.mean_loss = torch.lerp(self.mean_loss, self.loss, 0.01)
        self.mean_churn = torch.lerp(self.mean_churn, self.churn, 0.01)
        with torch.no_grad():
            torch._foreach_copy_(list(self.lagged.parameters()), list(self.newest.parameters()))
            torch._foreach_copy_(list(self.newest.parameters()), list(self.model.parameters()))
