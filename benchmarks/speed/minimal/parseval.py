"""Decoupled Parseval regularisation by hand."""

from __future__ import annotations

import torch

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import Parseval

METHOD = Parseval(1e-3)


class ByHand(Minimal):
    """The excess of each hidden layer's Gram matrix times its weights."""

    def after_step(self) -> None:
        """Pull."""
        pull = self.optimizer.param_groups[0]["lr"] * 1e-3
        with torch.no_grad():
            for layer in self.linears[:-1]:
                gram = layer.weight @ layer.weight.T
                gram.diagonal().sub_(2.0)
                layer.weight.add_(gram @ layer.weight, alpha=-pull * 4 * (64 / layer.out_features) ** 2)
