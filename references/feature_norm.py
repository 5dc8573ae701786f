"""The feature norm penalty, slowly: one sample at a time.

From Lyle et al. (2024), arXiv:2402.18762. Nothing of the package is used.
"""

from __future__ import annotations

from torch import Tensor, nn


def penalty(model: nn.Sequential, x: Tensor) -> Tensor:
    """Mean squared length of what the last layer of a chain gets as its input."""
    total = 0.0
    for sample in x:
        features = sample.unsqueeze(0)
        for layer in model[:-1]:
            features = layer(features)
        total = total + (features**2).sum()
    return total / len(x)
