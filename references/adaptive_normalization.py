"""Gated layer norms that open where a layer is in trouble, slowly: one unit at a time.

A layer's output h becomes h + g (norm(h) - h). At each check the layer's units are scored as by Sokar et al. (2023):
mean absolute activation over that of the layer. Nothing of the package is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GatedNetwork(nn.Module):
    """Linear layers with a gated layer norm and a ReLU between them.

    Args:
        linears: The linear layers.
    """

    def __init__(self, linears: list[nn.Linear]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)
        self.gains = nn.ParameterList([torch.ones_like(layer.bias) for layer in linears[:-1]])
        self.offsets = nn.ParameterList([torch.zeros_like(layer.bias) for layer in linears[:-1]])
        self.gates = [0.0] * (len(linears) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """The output; the hidden activations stay in ``features``."""
        self.features = []
        for layer, gain, offset, gate in zip(self.linears, self.gains, self.offsets, self.gates, strict=False):
            h = layer(x)
            x = torch.relu(h + gate * (F.layer_norm(h, (h.shape[1],), gain, offset) - h))
            self.features.append(x.detach())
        return self.linears[-1](x)


class SlowAdaptiveNormalization:
    """The method on a :class:`GatedNetwork`."""

    def __init__(self, model: GatedNetwork, *, rate, every, dormant, growth, tau) -> None:
        self.model, self.rate, self.every, self.dormant, self.growth, self.tau = (
            model,
            rate,
            every,
            dormant,
            growth,
            tau,
        )
        self.initial = [self._norm(layer.weight) for layer in model.linears]
        self.in_trouble = [False] * len(model.gates)
        self.step = 0

    @staticmethod
    def _norm(weight: Tensor) -> float:
        return math.sqrt(sum(float(entry) ** 2 for entry in weight.detach().flatten()))

    def after_step(self) -> None:
        """Check, when due; ``dormant`` and ``growth`` are (lower, upper) thresholds."""
        self.step += 1
        if self.step % self.every:
            return
        for at, act_BU in enumerate(self.model.features):
            activity = [float(act_BU[:, unit].abs().mean()) for unit in range(act_BU.shape[1])]
            mean = sum(activity) / len(activity)
            fraction = sum((a / mean if mean else 0.0) <= self.tau for a in activity) / len(activity)
            growth = self._norm(self.model.linears[at].weight) / self.initial[at]
            if fraction > self.dormant[1] or growth > self.growth[1]:
                self.in_trouble[at] = True
            elif fraction < self.dormant[0] and growth < self.growth[0]:
                self.in_trouble[at] = False
            if self.in_trouble[at]:
                self.model.gates[at] += self.rate * (1 - self.model.gates[at])
