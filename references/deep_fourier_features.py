"""Deep Fourier features, slowly: one number at a time, forwards and backwards.

From Lewandowski et al. (2024), arXiv:2410.20634. Nothing of the package is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TWO_FOR_ONE = True


def forward(x: Tensor) -> Tensor:
    """``[B, U]`` to ``[B, 2 U]``: the sines of all units, then the cosines of all units."""
    batch, units = x.shape
    out = torch.zeros(batch, 2 * units, dtype=x.dtype)
    for b in range(batch):
        for u in range(units):
            out[b, u] = math.sin(float(x[b, u]))
            out[b, units + u] = math.cos(float(x[b, u]))
    return out


def backward(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient with respect to ``x``."""
    batch, units = x.shape
    out = torch.zeros_like(x)
    for b in range(batch):
        for u in range(units):
            value = float(x[b, u])
            out[b, u] = grad[b, u] * math.cos(value) - grad[b, units + u] * math.sin(value)
    return out
