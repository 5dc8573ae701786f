"""Gated layer norms, and a look at the units and the weights now and then, by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import AdaptiveNormalization

METHOD = AdaptiveNormalization()


class Gated(nn.Module):
    """A layer whose output goes through its norm by the share of a gate that is not trained."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.LayerNorm(layer.out_features)
        self.register_buffer("gate", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Between the layer's output and its norm."""
        h = self.layer(x)
        out: Tensor = torch.lerp(h, self.norm(h), self.gate)  # type: ignore[arg-type]
        return out


class ByHand(Minimal):
    """The gate of a layer opens while many of its units are dormant or its weights have grown."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.step = 0
        self.gated = [Gated(linear) for linear in self.linears[:-1]]
        self.norms = [linear.weight.detach().norm() for linear in self.linears[:-1]]
        self.in_trouble = [False] * len(self.gated)
        self.act: dict[int, Tensor] = {}
        for place, layer in enumerate(self.gated):
            model[2 * place] = layer
            optimizer.param_groups[0]["params"].extend(layer.norm.parameters())
            model[2 * place + 1].register_forward_hook(lambda module, args, out, place=place: self.hear(place, out))

    def hear(self, place: int, out: Tensor) -> None:
        """Keep the activations of a step at which the layers are checked."""
        if METHOD.every is not None and (self.step + 1) % METHOD.every == 0:
            self.act[place] = out.detach()

    def after_step(self) -> None:
        """Check every layer, when due."""
        self.step += 1
        for place, act in self.act.items():
            activity = act.abs().mean(0)
            dormant = float((activity <= METHOD.tau * activity.mean()).float().mean())
            growth = float(self.gated[place].layer.weight.detach().norm() / self.norms[place])
            enters = dormant > METHOD.dormant_above or growth > METHOD.growth_above
            stays = dormant > METHOD.dormant_below or growth > METHOD.growth_below
            self.in_trouble[place] = enters or (self.in_trouble[place] and stays)
            if self.in_trouble[place]:
                gate = self.gated[place].gate
                gate.add_((1 - gate) * METHOD.rate)
        self.act.clear()
