"""Layer norm before the activations, by hand."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import InsertNormalization

METHOD = InsertNormalization()


class ByHand(Minimal):
    """The network is changed once; a training step is that of the new network."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        for place, linear in enumerate(self.linears[:-1]):
            norm = nn.LayerNorm(linear.out_features)
            model[2 * place] = nn.Sequential(linear, norm)
            optimizer.param_groups[0]["params"].extend(norm.parameters())
