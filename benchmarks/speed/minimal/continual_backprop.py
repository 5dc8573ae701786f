"""Continual backprop by hand, with the cadences that the method chooses for this network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import WIDTH, Minimal
from pliant.interventions import ContinualBackprop

METHOD = ContinualBackprop()
PERIOD = 160
"""Steps between decisions: what eight units of 512 take to accrue, in whole samples."""


class ByHand(Minimal):
    """A running mean of the activations at every tenth step, and now and then the least useful units."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.step = 0
        self.hidden = [module for module in model if isinstance(module, nn.ReLU)]
        for layer, module in enumerate(self.hidden):
            module.register_forward_hook(lambda module, args, output, layer=layer: self.hear(layer, output))
        self.activity = [torch.zeros(WIDTH) for _ in self.hidden]
        self.age = [torch.zeros(WIDTH, dtype=torch.long) for _ in self.hidden]
        self.budget = [0.0 for _ in self.hidden]

    def hear(self, layer: int, output: Tensor) -> None:
        """Average what the units do, at sampled steps."""
        if (self.step + 1) % METHOD.cadence == 0:
            weight = 1 - METHOD.decay_rate**METHOD.cadence
            self.activity[layer].lerp_(output.detach().abs().mean(0), weight)
            self.age[layer].add_(METHOD.cadence)

    def after_step(self) -> None:
        """Replace, when a decision is due."""
        self.step += 1
        if self.step % PERIOD == 0:
            with torch.no_grad():
                for layer in range(len(self.hidden)):
                    self.replace(layer)

    def replace(self, layer: int) -> None:
        """The mature units of least utility get a new life."""
        age, outgoing = self.age[layer], self.linears[layer + 1]
        mature = (age - METHOD.maturity_threshold).clamp(0, PERIOD).sum()
        self.budget[layer] += METHOD.replacement_rate * float(mature)
        number = int(self.budget[layer])
        if not number:
            return
        corrected = self.activity[layer] / (1 - METHOD.decay_rate ** age.clamp(min=1).float())
        utility = corrected * outgoing.weight.abs().sum(0)
        utility[age <= METHOD.maturity_threshold] = torch.inf
        units = utility.argsort()[:number]
        self.budget[layer] -= number
        self.renew(layer, units)
        self.activity[layer][units] = 0
        age[units] = 0
