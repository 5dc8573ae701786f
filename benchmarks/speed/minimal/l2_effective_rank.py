"""Weight decay and steps of effective rank by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import L2EffectiveRank

METHOD = L2EffectiveRank(1e-3, l2=1e-4, every=10)


class ByHand(Minimal):
    """The inputs of ten minibatches, and one more pass through the network."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.inputs: list[Tensor] = []

    def extend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the inputs."""
        self.inputs.append(x)
        return x, y

    @torch.no_grad()
    def before_step(self) -> None:
        """Coupled weight decay."""
        parameters = list(self.model.parameters())
        torch._foreach_add_([p.grad for p in parameters if p.grad is not None], parameters, alpha=1e-4)

    def after_step(self) -> None:
        """The step of effective rank."""
        if len(self.inputs) < 10:
            return
        h, ranks = torch.cat(self.inputs), []
        self.inputs = []
        for layer in self.model[:-1]:
            h = layer(h)
            if isinstance(layer, nn.ReLU):
                sigma = torch.linalg.svdvals(h)
                p = sigma / sigma.sum().clamp(min=1e-8)
                ranks.append((-(p * (p + 1e-8).log()).sum()).exp())
        parameters = list(self.model[:-1].parameters())
        gradients = torch.autograd.grad(torch.stack(ranks).mean(), parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, list(gradients), alpha=1e-3)
