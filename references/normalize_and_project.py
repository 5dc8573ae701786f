"""Normalize-and-Project, slowly: every weight matrix goes back to its initial norm, one entry at a time.

From Lyle et al. (2024), arXiv:2407.01800: after a step, each weight matrix is scaled to the Frobenius norm that it had
at initialisation. Gains and offsets of layer norms are scaled together to the norm of as many ones as there are gains,
or moved a share of the way to one and zero. Nothing of the package is used.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class SlowNormalizeAndProject:
    """The algorithm on linear layers and the layer norms between them.

    Args:
        linears: The linear layers.
        norms: The layer norms.
        every: Period in steps.
        affine: ``"project"``, ``"decay"`` or ``"keep"``.
        decay: The share of the way for ``"decay"``.
    """

    def __init__(
        self, linears: list[nn.Linear], norms: list[nn.LayerNorm], *, every: int, affine: str, decay: float = 0.0
    ) -> None:
        self.linears, self.norms, self.every, self.affine, self.decay = linears, norms, every, affine, decay
        self.initial = [self._norm([layer.weight]) for layer in linears]
        self.step = 0

    @staticmethod
    def _norm(tensors: list[torch.Tensor]) -> float:
        return math.sqrt(sum(float(entry) ** 2 for tensor in tensors for entry in tensor.detach().flatten()))

    def after_step(self) -> None:
        """Act."""
        self.step += 1
        if self.step % self.every:
            return
        with torch.no_grad():
            for layer, initial in zip(self.linears, self.initial, strict=True):
                layer.weight *= initial / self._norm([layer.weight])
            for norm in self.norms:
                if self.affine == "project":
                    factor = math.sqrt(len(norm.weight)) / self._norm([norm.weight, norm.bias])
                    norm.weight *= factor
                    norm.bias *= factor
                elif self.affine == "decay":
                    for unit in range(len(norm.weight)):
                        norm.weight[unit] += self.decay * (1 - norm.weight[unit])
                        norm.bias[unit] += self.decay * (0 - norm.bias[unit])
