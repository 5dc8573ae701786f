"""Parseval regularisation, slowly: every pair of rows by itself.

From Chung et al. (2024), arXiv:2412.07224, and the authors' code. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor


def penalty(weights: list[Tensor], *, scale: float, normalise_rows: bool, reference_width: int | None) -> Tensor:
    """The penalty of the hidden layers' weights, with graph; a kernel's row is everything that makes one channel."""
    total = torch.zeros((), dtype=torch.float64)
    for weight in weights:
        rows = [row.reshape(-1) for row in weight]
        if normalise_rows:
            rows = [row / row.norm() for row in rows]
        factor = 1.0 if reference_width is None else (reference_width / len(rows)) ** 2
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                wanted = scale if i == j else 0.0
                total = total + factor * ((one * other).sum() - wanted) ** 2
    return total


def decoupled(weights: list[Tensor], rate: float, strength: float, **options: object) -> None:
    """After the step: against the gradient of the penalty, by the step size."""
    gradients = torch.autograd.grad(penalty(weights, **options), weights)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= rate * strength * gradient
