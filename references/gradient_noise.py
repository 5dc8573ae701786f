"""Noise on gradients, slowly: each tensor by itself, before the step.

As in the noisy SGD of the experiments on trapping manifolds (Joudaki et al., 2025): the standard deviation is a share
of the norm of the tensor's gradient, and decays by a factor at every step. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import nn


class SlowGradientNoise:
    """The algorithm on any network.

    Args:
        model: Its gradients are changed.
        draw: ``draw(shape)`` gives standard normal values.
    """

    def __init__(self, model: nn.Module, draw, *, noise_scale: float, decay: float, relative_to: str) -> None:
        self.model, self.draw, self.relative_to = model, draw, relative_to
        self.noise_scale, self.decay = noise_scale, decay
        self.step = 0

    def before_step(self) -> None:
        """Add the noise."""
        size = self.noise_scale
        for _ in range(self.step):
            size = size * self.decay
        self.step += 1
        if size == 0:
            return
        with torch.no_grad():
            for parameter in self.model.parameters():
                norm = sum(float(entry) ** 2 for entry in parameter.grad.view(-1)) ** 0.5
                deviation = {
                    "nothing": size,
                    "tensor": size * norm,
                    "entry": size * norm / parameter.numel() ** 0.5,
                }[self.relative_to]
                parameter.grad += deviation * self.draw(tuple(parameter.shape)).to(parameter.dtype)
