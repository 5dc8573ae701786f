"""Dropout behind the activations, by hand."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import InsertDropout

METHOD = InsertDropout()


class ByHand(Minimal):
    """The network is changed once; a training step is that of the new network."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        for place in range(1, len(model), 2):
            model[place] = nn.Sequential(model[place], nn.Dropout(METHOD.p))
