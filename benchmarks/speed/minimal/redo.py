"""ReDo by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.minimal.base import Minimal
from pliant.interventions import ReDo

METHOD = ReDo()


class ByHand(Minimal):
    """Now and then, a look at the activations of one batch."""

    def __init__(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.step = 0
        self.active: list[Tensor] = []
        for module in model:
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(self.hear)

    def hear(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the activations of a step at which it is due."""
        if METHOD.every is not None and (self.step + 1) % METHOD.every == 0:
            self.active.append(output.detach())

    def after_step(self) -> None:
        """Recycle the dormant units, when due."""
        self.step += 1
        if not self.active:
            return
        with torch.no_grad():
            for layer, act in enumerate(self.active):
                activity = act.abs().mean(0)
                units = (activity <= METHOD.tau * activity.mean()).nonzero()[:, 0]
                self.renew(layer, units)
        self.active.clear()
