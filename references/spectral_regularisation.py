"""Spectral regularisation, slowly: exact singular values for the penalty, and one power iteration by loops.

From Lewandowski et al. (2024), arXiv:2406.06811. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def power_iteration(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right vectors after one iteration from a right vector, entry by entry."""
    rows, columns = matrix.shape
    left = torch.zeros(rows, dtype=matrix.dtype)
    for i in range(rows):
        left[i] = sum(matrix[i, j] * right[j] for j in range(columns))
    left = left / left.norm()
    new = torch.zeros(columns, dtype=matrix.dtype)
    for j in range(columns):
        new[j] = sum(matrix[i, j] * left[i] for i in range(rows))
    return left, new / new.norm()


class SlowSpectral:
    """The penalty of a plain network, with persistent vectors.

    Args:
        model: Linear layers, convolutions and norms.
        start: Parameter name to the right vector that its iteration starts from.
        k: The exponent.
    """

    def __init__(self, model: nn.Module, start: dict[str, Tensor], k: float) -> None:
        self.model, self.k = model, k
        self.vectors = {name: (torch.empty(0), vector.clone()) for name, vector in start.items()}

    def iterate(self) -> None:
        """Improve the vectors of every matrix."""
        for name, (_, right) in self.vectors.items():
            matrix = self.model.get_parameter(name).detach()
            self.vectors[name] = power_iteration(matrix.reshape(matrix.shape[0], -1), right)

    def penalty(self) -> Tensor:
        """With the graph of the weights; the vectors are constants."""
        total = torch.zeros((), dtype=torch.float64)
        for path, module in self.model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    left, right = self.vectors[f"{path}.{name}"]
                    sigma = left @ parameter.reshape(parameter.shape[0], -1) @ right
                    total = total + (sigma**self.k - 1) ** 2
                elif name == "weight":  # the gain of a norm
                    total = total + ((parameter - 1) ** 2).sum()
                else:
                    total = total + (parameter**2).sum() ** self.k
        return total
