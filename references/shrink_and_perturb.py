"""Shrink and perturb, slowly: one parameter of a plain MLP at a time.

From Ash & Adams (2020), arXiv:1910.08475: every parameter is multiplied by a factor, and a fresh network times another
factor is added. With the factor at 1 and normal noise of a small standard deviation this is the noise that Dohare et
al. (Nature, 2024) add after every step. The optimizer is left alone. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import nn


class SlowShrinkAndPerturb:
    """The algorithm on ``[nn.Linear, activation, nn.Linear, ..., nn.Linear]``.

    Args:
        linears: The linear layers, in order.
        uniform: ``uniform(shape, bound)`` gives fresh values, uniform on ``[-bound, bound]``; or ``None``.
        normal: ``normal(shape, deviation)`` gives normal values, used if ``uniform`` is ``None``.
        shrink: The factor of the old parameters.
        noise_scale: The factor of the noise.
        every: After how many steps; ``None``: at task boundaries.
    """

    def __init__(
        self, linears: list[nn.Linear], uniform, normal, *, shrink: float, noise_scale: float, every: int | None
    ) -> None:
        self.linears, self.uniform, self.normal = linears, uniform, normal
        self.shrink, self.noise_scale, self.every = shrink, noise_scale, every
        self.step = 0

    def after_step(self) -> None:
        """Act by steps."""
        self.step += 1
        if self.every is not None and self.step % self.every == 0:
            self.act()

    def at_task_boundary(self) -> None:
        """Act by tasks."""
        if self.every is None:
            self.act()

    def act(self) -> None:
        """Shrink and perturb."""
        with torch.no_grad():
            for layer in self.linears:
                for parameter in (layer.weight, layer.bias):
                    shape = tuple(parameter.shape)
                    if self.uniform is None:
                        noise = self.normal(shape, self.noise_scale)
                    else:
                        noise = self.uniform(shape, self.noise_scale * layer.in_features**-0.5)
                    parameter.copy_(self.shrink * parameter + noise.double())
