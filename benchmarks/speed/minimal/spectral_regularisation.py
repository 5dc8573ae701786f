"""Decoupled spectral regularisation by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import SpectralRegularisation

METHOD = SpectralRegularisation(1e-3)


class ByHand(Minimal):
    """One power iteration for each matrix, and the outer product of its vectors."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.vectors = [normalize(torch.randn(layer.in_features), dim=0) for layer in self.linears]

    def after_step(self) -> None:
        """Iterate and pull."""
        pull = self.optimizer.param_groups[0]["lr"] * 1e-3
        with torch.no_grad():
            for index, layer in enumerate(self.linears):
                left = normalize(layer.weight @ self.vectors[index], dim=0)
                right = normalize(layer.weight.T @ left, dim=0)
                self.vectors[index] = right
                sigma = left @ (layer.weight @ right)
                layer.weight.add_(torch.outer(left * (-pull * 4 * (sigma**2 - 1) * sigma), right))
                layer.bias.sub_(pull * 4 * layer.bias.square().sum() * layer.bias)
