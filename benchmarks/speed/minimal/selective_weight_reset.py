"""Selective weight reinitialisation by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import SelectiveWeightReset

METHOD = SelectiveWeightReset()


class ByHand(Minimal):
    """Now and then, a look at the product of weights and gradients."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.bounds = [(p, layer.in_features**-0.5) for layer in self.linears for p in layer.parameters()]
        self.step = 0

    def after_step(self) -> None:
        """Renew the weights of least use, when due."""
        self.step += 1
        if METHOD.every is None or self.step % METHOD.every:
            return
        with torch.no_grad():
            for parameter, bound in self.bounds:
                utility = (parameter * parameter.grad).abs()
                chosen = utility <= METHOD.factor * utility.mean()
                parameter[chosen] = torch.empty(int(chosen.sum())).uniform_(-bound, bound)
                for value in self.optimizer.state[parameter].values():
                    if value.shape == parameter.shape:
                        value[chosen] = 0
